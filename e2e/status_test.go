//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// statusLab is a gateway on Usher, and two ways to ask Usher for its state.
type statusLab struct {
	*lab.Lab
	t       *testing.T
	csds    statusv3.ClientStatusDiscoveryServiceClient
	outputs []string // everything that was printed or answered
}

// stated is what the tests read of the output of `usher status -o json`.
type stated []struct {
	State struct {
		Gateways []struct {
			Name      string
			Instances int
			Envoys    int
			Listeners []struct {
				Port                  int
				Asked, InForce, Place string
				Built                 string
				Unconfirmed           bool
			}
		}
		Envoys []struct {
			Gateway, ServiceID, Node, Address, Release, Protocol string
			Connected                                            time.Time
			Types                                                []struct{ Type, Sync, Error string }
		}
		Problems []struct{ Severity, What string }
	}
}

// run runs usher status on the gateway's host.
func (s *statusLab) run(args ...string) testprocess.Result {
	s.t.Helper()
	end := testprocess.Run(s.t, testprocess.Command{
		Name: "usher status", Path: testprocess.Usher(s.t), Args: append([]string{"status"}, args...), Host: s.Gateway,
	}, "")
	s.outputs = append(s.outputs, end.Stdout, end.Stderr)
	return end
}

// state returns the state of the only Envoy's types, by name, and everything else.
func (s *statusLab) state() (types map[string]string, all stated, err error) {
	s.t.Helper()
	end := s.run("-o", "json")
	if err := json.Unmarshal([]byte(end.Stdout), &all); err != nil {
		return nil, nil, err
	}
	if len(all) != 1 || len(all[0].State.Envoys) != 1 {
		return nil, nil, fmt.Errorf("exit status %d: %s%s", end.Code, end.Stdout, end.Stderr)
	}
	types = map[string]string{}
	for _, of := range all[0].State.Envoys[0].Types {
		types[of.Type] = of.Sync
	}
	return types, all, nil
}

// fetch asks CSDS with a client that knows nothing of Usher, and returns the status of each type.
func (s *statusLab) fetch(contents bool) (map[string]*statusv3.ClientConfig_GenericXdsConfig, error) {
	s.t.Helper()
	answer, err := s.csds.FetchClientStatus(s.t.Context(), &statusv3.ClientStatusRequest{
		ExcludeResourceContents: !contents,
		NodeMatchers:            []*matcherv3.NodeMatcher{{NodeId: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "ingress-gateway"}}}},
	})
	if err != nil {
		return nil, err
	}
	encoded, err := proto.Marshal(answer) // texts are in it as they are
	if err != nil {
		return nil, err
	}
	s.outputs = append(s.outputs, string(encoded))
	if len(answer.Config) != 1 {
		return nil, fmt.Errorf("%d Envoys, want 1", len(answer.Config))
	}
	byType := map[string]*statusv3.ClientConfig_GenericXdsConfig{}
	for _, g := range answer.Config[0].GenericXdsConfigs {
		byType[g.TypeUrl+g.Name] = g
	}
	return byType, nil
}

// waitListeners waits until both ways say that the listeners of the Envoy are in a state, and their modes are as they should
// be. If that state is synced, everything else has to be, too: Envoy asks for routes and secrets after its listeners.
func (s *statusLab) waitListeners(sync string, config statusv3.ConfigStatus, mode string) {
	s.t.Helper()
	testprocess.Eventually(s.t, fmt.Sprintf("listeners are %s, mode %s", sync, mode), testprocess.ChangeDeadline, func() error {
		types, all, err := s.state()
		if err != nil {
			return err
		}
		gateways := all[0].State.Gateways
		if len(gateways) != 1 || len(gateways[0].Listeners) == 0 {
			return fmt.Errorf("status has the gateways %+v", gateways)
		}
		l := gateways[0].Listeners[0]
		if types["listener"] != sync || l.Port != 8080 || l.InForce != mode || l.Unconfirmed != (sync != "synced") {
			return fmt.Errorf("status has %v, and %+v", types, l)
		}
		for _, name := range []string{"cluster", "endpoint", "listener", "route", "secret"} {
			if sync == "synced" && types[name] != sync {
				return fmt.Errorf("%s is %q", name, types[name])
			}
		}
		byType, err := s.fetch(false)
		if err != nil {
			return err
		}
		if got := byType[resource.ListenerType].GetConfigStatus(); got != config {
			return fmt.Errorf("CSDS has %v", got)
		}
		return nil
	})
}

// wantExit compares the exit status and a part of the table.
func (s *statusLab) wantExit(code int, part string) {
	s.t.Helper()
	if end := s.run(); end.Code != code || !strings.Contains(end.Stdout, part) {
		s.t.Errorf("exit status %d, want %d, and %q in\n%s%s", end.Code, code, part, end.Stdout, end.Stderr)
	}
}

// TestStatusFromStartToReconnect follows an Envoy that accepts everything, stops, refuses its listener, and comes back to
// another Usher. usher status and a client of CSDS agree at each step, and nothing that they say is secret.
func TestStatusFromStartToReconnect(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, true)
	const header, cookie = "header-s3cret", "cookie-s3cret"
	l.Consul.WriteEntry(t, strings.Replace(testprocess.ReadFile(t, "testdata/lab/ingress-gateway.hcl"), `Name = "static-server"`,
		fmt.Sprintf("Name = \"static-server\"\nRequestHeaders { Set { Authorization = \"Bearer %s\" } }\nResponseHeaders { Set { Set-Cookie = %q } }", header, cookie), 1))
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
	s := &statusLab{Lab: l, t: t}
	admin := lab.XDSPort{From: l.Gateway, Address: "127.0.0.1:18001"}.Dial(t)
	s.csds = statusv3.NewClientStatusDiscoveryServiceClient(admin)
	envoy := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	s.waitListeners("synced", statusv3.ConfigStatus_SYNCED, "off")
	s.wantExit(0, "no problems")
	s.wantEnvoy()
	if health, err := healthv1.NewHealthClient(admin).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || health.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("gRPC health: %v %v", health, err)
	}

	envoy.Signal(t, syscall.SIGSTOP)
	l.SetMode(t, "permissive")
	s.waitListeners("stale", statusv3.ConfigStatus_STALE, "permissive")
	s.wantExit(0, "listener stale for ")
	envoy.Signal(t, syscall.SIGCONT)
	s.waitListeners("synced", statusv3.ConfigStatus_SYNCED, "permissive")

	setAccessLog(t, l, "/no/such/directory/access.log")
	s.waitListeners("refused", statusv3.ConfigStatus_ERROR, "off")
	s.wantExit(1, "listener refused for ")
	s.wantExit(1, "/no/such/directory/access.log")
	refused, err := s.fetch(false)
	if err != nil || !strings.Contains(refused[resource.ListenerType].ErrorState.GetDetails(), "/no/such/directory/access.log") {
		t.Errorf("CSDS does not have Envoy's reason: %v %v", refused, err)
	}
	setAccessLog(t, l, "/dev/null")
	s.waitListeners("synced", statusv3.ConfigStatus_SYNCED, "off")

	_, before, err := s.state()
	if err != nil {
		t.Fatal(err)
	}
	usher.Stop(t)
	if end := s.run(); end.Code != 2 {
		t.Errorf("without Usher: exit status %d: %s%s", end.Code, end.Stdout, end.Stderr)
	}
	lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
	s.waitListeners("synced", statusv3.ConfigStatus_SYNCED, "off")
	_, after, err := s.state()
	if err != nil || !after[0].State.Envoys[0].Connected.After(before[0].State.Envoys[0].Connected) {
		t.Errorf("it has been connected since %v, and before the restart since %v (%v)", after, before, err)
	}
	s.wantNoSecrets(header, cookie)
}

// wantEnvoy compares what the status has of the only Envoy.
func (s *statusLab) wantEnvoy() {
	s.t.Helper()
	_, all, err := s.state()
	if err != nil {
		s.t.Fatal(err)
	}
	gateway, envoy := all[0].State.Gateways[0], all[0].State.Envoys[0]
	if gateway.Name != "ingress-gateway" || gateway.Instances != 1 || gateway.Envoys != 1 || gateway.Listeners[0].Built != "current" {
		s.t.Errorf("the gateway is %+v", gateway)
	}
	if envoy.Gateway != "ingress-gateway" || envoy.ServiceID != "ingress-gateway" || envoy.Node == "" || envoy.Address != "127.0.0.1" ||
		envoy.Release != lab.EnvoyNew || envoy.Protocol != "delta" {
		s.t.Errorf("the Envoy is %+v", envoy)
	}
}

// wantNoSecrets wants neither the gateway's key nor tokens nor the values of headers in anything that was printed.
func (s *statusLab) wantNoSecrets(secrets ...string) {
	s.t.Helper()
	byType, err := s.fetch(true)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, name := range []string{resource.SecretType + lab.LeafSecret, resource.RouteType + "8080"} {
		if byType[name].GetXdsConfig() == nil {
			s.t.Errorf("CSDS has no content of %s", name)
		}
	}
	for _, format := range []string{"wide", "yaml", "table"} {
		s.run("-o", format)
	}
	token := s.Consul.DefaultToken()
	fake := lab.ConnectFakeEnvoy(s.t, lab.XDSPort{From: s.Gateway}.Dial(s.t), fakeenvoy.Delta, token)
	secrets = append(secrets, token)
	for line := range strings.Lines(lab.FetchPrivateKey(s.t, fake)) {
		secrets = append(secrets, strings.TrimSpace(line))
	}
	all := strings.Join(s.outputs, "\n")
	if n := strings.Count(all, "[redacted]"); n < 3 {
		s.t.Errorf("%d values are redacted, want the key and two headers", n)
	}
	for _, secret := range secrets {
		if secret == "" || strings.Contains(all, secret) {
			s.t.Errorf("%q is in an output", secret)
		}
	}
}
