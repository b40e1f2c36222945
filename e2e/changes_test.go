//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/hashicorp/consul/api"
)

// secondIP is the address of the host with the second instance of the service.
const secondIP = "198.18.0.31"

// servedBy is the header in which a service of this story says who it is.
const servedBy = "Served-By"

// The headers in which it says what it was asked.
const (
	seenMark = "X-Seen-Mark"
	seenPath = "X-Seen-Path"
)

// TestChangesReachARunningEnvoy has two Envoys of one gateway side by side, one
// on Usher and one on Consul's own xDS, and a load on both that never pauses.
// Every kind of change is made once in Consul and waited for at both. Usher's
// Envoy has them sooner, and none of its requests fails; where a change takes
// away what serves them, they fail as with Consul's own, until it is back.
func TestChangesReachARunningEnvoy(t *testing.T) {
	s := startChangesStory(t)
	s.startLoad(t)
	s.tellAll(t, "the gateway's entry", s.ofTheGateway())
	s.tellAll(t, "the services' entries", s.ofTheServices())
	s.tellAll(t, "instances", s.ofTheInstances(t))
	s.tellAll(t, "the gateway's registration", s.ofTheRegistrations())
	s.tellAll(t, "all proxies", s.ofAllProxies())
	for _, o := range s.outages() {
		s.tellOutage(t, o)
	}
	s.tell(t, s.newRoot())
	s.wantNoFailures(t)
}

// changesStory is what is changed.
type changesStory struct {
	*twoGateways
	Second   *host // of the service's second instance
	entry    *api.IngressGatewayConfigEntry
	sidecars []*envoy
}

func startChangesStory(t *testing.T) *changesStory {
	t.Helper()
	l := newLab(t)
	s := &changesStory{
		twoGateways: &twoGateways{lab: l},
		Second:      l.addHost(t, "second", secondIP),
		entry: &api.IngressGatewayConfigEntry{
			Kind: api.IngressGateway, Name: "ingress-gateway",
			Listeners: []api.IngressListener{{
				Port: 8080, Protocol: "http",
				Services: []api.IngressService{{Name: "static-server", Hosts: []string{labHost}}},
			}},
		},
	}
	s.Consul = startConsul(t, consulOptions{Version: consulNew, Host: l.Control})
	for _, e := range []api.ConfigEntry{
		logFormat("one"),
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "static-server", Protocol: "http"},
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "other-server", Protocol: "http"},
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "http2-server", Protocol: "http2"},
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "grpc-server", Protocol: "grpc"},
		s.entry,
	} {
		if err := s.set(e); err != nil {
			t.Fatal(err)
		}
	}
	s.startServices(t)
	s.startGateways(t)
	return s
}

// startServices starts one instance of either service.
func (s *changesStory) startServices(t *testing.T) {
	t.Helper()
	for i := range 2 {
		o := s.instance(i)
		startNamed(t, s.Service, o.Port, o.Name)
		s.sidecars = append(s.sidecars, registerService(t, o))
	}
	s.Consul.waitChecked(t, "static-server")
	s.Consul.waitChecked(t, "other-server")
}

// instance is the only one of the first service, or of the second.
func (s *changesStory) instance(i int) serviceOptions {
	name := []string{"static-server", "other-server"}[i]
	return serviceOptions{
		Name: name, ID: name, Port: 8080 + i, SidecarPort: 21000 + i, Consul: s.Consul, Host: s.Service, Envoy: envoyNew,
	}
}

// startGateways starts Usher and the two, each on a host of its own.
func (l *twoGateways) startGateways(t *testing.T) {
	t.Helper()
	usher := startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul})
	l.Usher = &loadedGateway{envoy: startGateway(t, gatewayOptions{
		Host: l.Gateway, Consul: l.Consul, Envoy: envoyNew, GRPCAddr: usher.GRPCAddr, ID: "on-usher",
	})}
	other := l.addHost(t, "gateway2", gateway2IP)
	l.Own = &loadedGateway{envoy: startGateway(t, gatewayOptions{
		Host: other, Consul: l.Consul, Envoy: envoyNew, ID: "on-consul",
	})}
	for _, g := range l.both() {
		g.waitListener(t, 8080)
	}
}

// startNamed serves a service that says its name.
func startNamed(t *testing.T, h *host, port int, name string) {
	t.Helper()
	serveHTTP(t, h, port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(servedBy, name)
		w.Header().Set(seenMark, r.Header.Get(seenMark))
		w.Header().Set(seenPath, r.URL.Path)
		fmt.Fprintln(w, "hello world")
	}))
}

// set writes an entry with one request.
func (l *twoGateways) set(e api.ConfigEntry) error {
	_, _, err := l.Consul.Client.ConfigEntries().Set(e, nil)
	return err
}

// writing is a change that writes an entry.
func (l *twoGateways) writing(e api.ConfigEntry) func() error {
	return func() error { return l.set(e) }
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
		return s.set(s.entry)
	}
}

// answered wants a request answered 200 with the header.
func answered(c call, header, value string) func(*loadedGateway) error {
	return func(g *loadedGateway) error {
		got, err := g.ask(c)
		if err == nil && (got.Status != http.StatusOK || got.Header.Get(header) != value) {
			err = fmt.Errorf("status %d, %s %q", got.Status, header, got.Header.Get(header))
		}
		return err
	}
}
