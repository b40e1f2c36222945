//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
)

// secondIP is the address of the host with the second instance of the service.
const secondIP = "198.18.0.31"

// TestChangesReachARunningEnvoy has two Envoys of one gateway side by side, one
// on Usher and one on Consul's own xDS, both under constant load. It makes every
// type of change once in Consul and waits for it at both. Usher's Envoy has the
// changes sooner, and none of its requests fails. Where a change stops the
// service, requests fail as with Consul's own gateway, until it is back.
func TestChangesReachARunningEnvoy(t *testing.T) {
	t.Parallel()
	s := startChangesStory(t)
	s.StartLoad(t)
	s.CompareAll(t, "the gateway's entry", s.ofTheGateway())
	s.CompareAll(t, "the services' entries", s.ofTheServices())
	s.CompareAll(t, "instances", s.ofTheInstances(t))
	s.CompareAll(t, "the gateway's registration", s.ofTheRegistrations())
	s.CompareAll(t, "all proxies", s.ofAllProxies())
	for _, o := range s.outages() {
		s.CompareOutage(t, o)
	}
	s.Compare(t, s.newRoot())
	s.WantNoFailures(t)
}

// changesStory is what is changed.
type changesStory struct {
	*lab.Comparison
	Second   *lab.Host // of the service's second instance
	entry    *api.IngressGatewayConfigEntry
	sidecars []*lab.Envoy
}

func startChangesStory(t *testing.T) *changesStory {
	t.Helper()
	l := lab.NewNetwork(t)
	s := &changesStory{
		Comparison: &lab.Comparison{Network: l},
		Second:     l.AddHost(t, "second", secondIP),
		entry: &api.IngressGatewayConfigEntry{
			Kind: api.IngressGateway, Name: "ingress-gateway",
			Listeners: []api.IngressListener{{
				Port: 8080, Protocol: "http",
				Services: []api.IngressService{{Name: "static-server", Hosts: []string{lab.ServiceHost}}},
			}},
		},
	}
	s.Consul = lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: l.Control})
	for _, e := range []api.ConfigEntry{
		lab.ProxyDefaultsWithLog("one"),
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "static-server", Protocol: "http"},
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "other-server", Protocol: "http"},
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "http2-server", Protocol: "http2"},
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "grpc-server", Protocol: "grpc"},
		s.entry,
	} {
		if err := s.WriteEntry(e); err != nil {
			t.Fatal(err)
		}
	}
	s.startServices(t)
	s.StartGateways(t)
	return s
}

// startServices starts one instance of either service.
func (s *changesStory) startServices(t *testing.T) {
	t.Helper()
	for i := range 2 {
		o := s.instance(i)
		lab.ServeNamed(t, s.Service, o.Port, o.Name)
		s.sidecars = append(s.sidecars, lab.RegisterService(t, o))
	}
	s.Consul.WaitChecked(t, "static-server")
	s.Consul.WaitChecked(t, "other-server")
}

// instance is the only one of the first service, or of the second.
func (s *changesStory) instance(i int) lab.ServiceOptions {
	name := []string{"static-server", "other-server"}[i]
	return lab.ServiceOptions{
		Name: name, ID: name, Port: 8080 + i, SidecarPort: 21000 + i, Consul: s.Consul, Host: s.Service, Envoy: lab.EnvoyNew,
	}
}

// deleting is a change that deletes an entry.
func (s *changesStory) deleting(kind, name string) func() error {
	return func() error {
		_, err := s.Consul.Client.ConfigEntries().Delete(kind, name, nil)
		return err
	}
}

// editing is a change to the gateway's entry.
func (s *changesStory) editing(f func(e *api.IngressGatewayConfigEntry)) func() error {
	return func() error {
		f(s.entry)
		return s.WriteEntry(s.entry)
	}
}

// answered wants a request answered 200 with the header.
func answered(c lab.Request, header, value string) func(*lab.LoadedGateway) error {
	return func(g *lab.LoadedGateway) error {
		got, err := g.Request(c)
		if err == nil && (got.Status != http.StatusOK || got.Header.Get(header) != value) {
			err = fmt.Errorf("status %d, %s %q", got.Status, header, got.Header.Get(header))
		}
		return err
	}
}
