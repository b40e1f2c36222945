package listeners

import (
	"encoding/base64"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// TestReportsAreAccessLogsAndNothingElse compiles every case with reports,
// and removes them.
func TestReportsAreAccessLogsAndNothingElse(t *testing.T) {
	eachCompiled(t, func(t *testing.T, c compiled) {
		with := compileReporting(c, evidence.NewKey([]byte("a secret")), "local_agent")
		for name, l := range with.Listeners.All() {
			l = proto.Clone(l).(*listenerv3.Listener)
			logs := len(l.AccessLog)
			l.AccessLog = slices.DeleteFunc(l.AccessLog, func(a *accesslogv3.AccessLog) bool { return a.Name == "Usher Report" })
			if len(l.AccessLog) == logs && !strings.HasPrefix(name, "usher-relay:") {
				t.Errorf("%s reports nothing", name)
			}
			with.Listeners = with.Listeners.With(name, l)
		}
		for name := range with.TokenBuckets.All() {
			if strings.HasPrefix(name, "usher-report") {
				with.TokenBuckets = with.TokenBuckets.Without(name)
			}
		}
		if diff := diffResources(c.resources, with); diff != "" {
			t.Errorf("without reports -, with them +:\n%s", diff)
		}
	})
}

func TestNothingIsReportedWithoutAKeyOrACluster(t *testing.T) {
	eachCompiled(t, func(t *testing.T, c compiled) {
		for name, r := range map[string]*Resources{
			"no key":     compileReporting(c, evidence.Key{}, "local_agent"),
			"no cluster": compileReporting(c, evidence.NewKey([]byte("a secret")), ""),
		} {
			if diff := diffResources(c.resources, r); diff != "" {
				t.Errorf("%s:\n%s", name, diff)
			}
		}
	})
}

// TestReportsOfListenersThatAreOffNameTrustedAddresses: they are permissive for
// these if headers come, where their other settings allow it.
func TestReportsOfListenersThatAreOffNameTrustedAddresses(t *testing.T) {
	in, err := os.ReadFile("testdata/auto.in.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s, _ := mustParse(t, in)
	key := evidence.NewKey([]byte("a secret"))
	for name, c := range map[string]struct {
		service string
		settings.ProxyProtocol
		want bool
	}{
		"auto":                         {"told-nothing", settings.ProxyProtocol{TrustedCIDRs: trustedTen}, true},
		"auto, all addresses":          {"told-nothing", settings.ProxyProtocol{}, false},
		"off":                          {"told-nothing", settings.ProxyProtocol{Mode: settings.Off, TrustedCIDRs: trustedTen}, false},
		"auto, headers come":           {"sends-unasked", settings.ProxyProtocol{TrustedCIDRs: trustedTen}, true},
		"auto, the addresses are kept": {"sends-unasked-and-keeps-addresses", settings.ProxyProtocol{TrustedCIDRs: trustedTen}, false},
		"auto, too many to name":       {"told-nothing", settings.ProxyProtocol{TrustedCIDRs: slices.Repeat(trustedTen, 300)}, false},
		"auto, outside Kubernetes":     {"", settings.ProxyProtocol{TrustedCIDRs: trustedTen}, false},
	} {
		in := *s.Instances[0]
		in.Kubernetes = gateway.KubernetesService{}
		if c.service != "" {
			in.Kubernetes = gateway.KubernetesService{Namespace: "consul", Name: c.service}
		}
		in.Registration.Settings.ProxyProtocol = c.ProxyProtocol
		r := (&Compiler{Reports: key}).Compile(s, &in, gateway.Envoy{ReportCluster: "local_agent"})
		if got := reportedTrust(t, r); got != c.want {
			t.Errorf("%s: the report names trusted addresses: %v, want %v", name, got, c.want)
		}
	}
}

var trustedTen = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}

// reportedTrust reports whether the only listener's report names addresses.
func reportedTrust(t *testing.T, r *Resources) bool {
	t.Helper()
	for _, l := range r.Listeners.All() {
		for _, log := range l.AccessLog {
			if log.Name != "Usher Report" {
				continue
			}
			text := regexp.MustCompile(evidence.ListenerKey + `"\s+value:\s*"([^"]+)"`).FindStringSubmatch(prototext.Format(log))
			if text == nil {
				t.Fatalf("there is no listener in %v", log)
			}
			about, err := base64.RawURLEncoding.DecodeString(text[1])
			if err != nil {
				t.Fatal(err)
			}
			return strings.Contains(string(about), "trusted=")
		}
	}
	t.Fatal("no listener reports")
	return false
}

// compileReporting compiles a case again, for an Envoy that reports with a key
// over a cluster.
func compileReporting(c compiled, key evidence.Key, cluster string) *Resources {
	compiler := Compiler{Reports: key}
	return compiler.Compile(c.snapshot, c.instance, gateway.Envoy{EnvoyVersion: c.envoy, ReportCluster: cluster})
}
