package consul

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// gatewayWith is a registration whose merged Proxy.Config says a mode.
func gatewayWith(t *testing.T, mode string) *registrations {
	t.Helper()
	regs, err := decodeInstances(nil, answer{body: []byte(`[{
		"Node": {"Node": "n", "Datacenter": "dc1"},
		"Service": {"ID": "edge", "Service": "edge", "Kind": "ingress-gateway",
			"Proxy": {"Config": {"usher": {"proxy_protocol": {"mode": "` + mode + `"}}}}}
	}]`)})
	if err != nil {
		t.Fatal(err)
	}
	return regs
}

// defaultsWith is a proxy-defaults entry that says a mode.
func defaultsWith(mode string) *proxyDefaults {
	return &proxyDefaults{config: map[string]any{
		settings.Key: map[string]any{"proxy_protocol": map[string]any{"mode": mode}},
	}}
}

func TestABadValueThatIsMergedLateIsTheProxyDefaultsAlone(t *testing.T) {
	s := &source{}
	start := time.Now()
	for _, step := range []struct {
		name         string
		merged, said string // by the registration, by proxy-defaults
		after        time.Duration
		problems     int
		again        time.Duration
	}{
		{"both good", "strict", "strict", 0, 0, noDelay},
		{"merged before proxy-defaults is read", "stict", "strict", 0, 0, mergeTime},
		{"both bad", "stict", "stict", 10 * time.Millisecond, 0, noDelay},
		{"mended, not merged yet", "stict", "strict", time.Minute, 0, mergeTime},
		{"still not", "stict", "strict", time.Minute + 300*time.Millisecond, 0, mergeTime - 300*time.Millisecond},
		{"merged", "strict", "strict", time.Minute + 500*time.Millisecond, 0, noDelay},
		{"the registration's own", "stict", "strict", time.Hour, 0, mergeTime},
		{"for longer", "stict", "strict", time.Hour + mergeTime, 1, noDelay},
		{"another one", "off!", "strict", time.Hour + 2*mergeTime, 1, noDelay},
		{"mended", "off", "strict", time.Hour + 3*mergeTime, 0, noDelay},
	} {
		now := start.Add(step.after)
		_, problems := s.instances(gatewayWith(t, step.merged), defaultsWith(step.said), now)
		if len(problems) != step.problems {
			t.Errorf("%s: problems %v, want %d", step.name, problems, step.problems)
		}
		if diff := cmp.Diff(step.again, s.mergeDelay(now)); diff != "" {
			t.Errorf("%s: look again (-want +got):\n%s", step.name, diff)
		}
	}
}

func TestBadSettingsOfAnInstanceKeepItsLastGoodOnes(t *testing.T) {
	s := &source{}
	now := time.Now()
	s.instances(gatewayWith(t, "strict"), defaultsWith("off"), now)
	in, _ := s.instances(gatewayWith(t, "stict"), defaultsWith("off"), now)
	if got := in[0].Registration; got.Unknown || got.Settings.ProxyProtocol.Mode != settings.Strict {
		t.Errorf("own settings are %+v, want the last good ones", got)
	}
	s = &source{}
	if in, _ = s.instances(gatewayWith(t, "stict"), defaultsWith("off"), now); !in[0].Registration.Unknown {
		t.Errorf("own settings are %+v, want unknown ones", in[0].Registration)
	}
}

func TestTheServiceInFrontOfAnInstance(t *testing.T) {
	for meta, want := range map[string]gateway.KubernetesService{
		`{"k8s-namespace": "consul", "k8s-service-name": "consul-edge", "pod-name": "edge-1"}`: {Namespace: "consul", Name: "consul-edge"},
		`{"k8s-namespace": "consul"}`: {},
		`null`:                        {},
	} {
		regs, err := decodeInstances(nil, answer{body: []byte(`[{"Node": {"Node": "n"}, "Service": {"ID": "edge", "Kind": "ingress-gateway", "Meta": ` + meta + `}}]`)})
		if err != nil {
			t.Fatal(err)
		}
		if in, _ := regs.list[0].instance(settings.Layer{}, nil); in.Kubernetes != want {
			t.Errorf("%s: %+v, want %+v", meta, in.Kubernetes, want)
		}
	}
}
