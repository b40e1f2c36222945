//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/bootstrap"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// gatewayOfStatistics has clusters of each form of name that Consul gives them, and listeners of both protocols.
const gatewayOfStatistics = `
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [
  { Port = 8080, Protocol = "http", Services = [{ Name = "static-server" }, { Name = "split" }] },
  { Port = 9000, Protocol = "tcp", Services = [{ Name = "database" }] }
]
`

// servicesOfStatistics are the services behind it that do not run.
var servicesOfStatistics = []string{
	`Kind = "service-defaults"
Name = "split"
Protocol = "http"`,
	`Kind = "service-resolver"
Name = "split"
DefaultSubset = "v1"
Subsets = { v1 = { Filter = "Service.Meta.version == v1" }, v2 = { Filter = "Service.Meta.version == v2" } }
Failover = { v1 = { ServiceSubset = "v2" } }
ConnectTimeout = "1s"`,
	`Kind = "service-router"
Name = "split"
Routes = [{ Match { HTTP { PathPrefix = "/v2" } }, Destination { ServiceSubset = "v2" } }]`,
}

// TestMetricsAreThoseOfConsulsBootstrap starts Envoys with Consul's bootstrap and with each of Usher's, one after the
// other on the same host and with the same requests. They have the same metrics with the same labels.
func TestMetricsAreThoseOfConsulsBootstrap(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := newStatisticsLab(t, envoy)
		consuls := l.metrics(t, l.startConsuls(t))
		t.Run("usher bootstrap", func(t *testing.T) {
			lab.WantSameMetrics(t, consuls, l.metrics(t, l.startUshers(t, "--eager-stats")), nil)
		})
		t.Run("usher bootstrap with deferred statistics", func(t *testing.T) {
			own := l.metrics(t, l.startUshers(t))
			if len(own) == len(consuls) {
				t.Error("no metric is deferred")
			}
			lab.WantSameMetrics(t, consuls, own, lab.IsDeferred)
		})
		consuls = l.metrics(t, l.startConsuls(t, "-omit-deprecated-tags"))
		t.Run("usher bootstrap without deprecated labels", func(t *testing.T) {
			lab.WantSameMetrics(t, consuls, l.metrics(t, l.startUshers(t, "--eager-stats", "--omit-deprecated-tags")), nil)
		})
		t.Run("template for consul-dataplane", func(t *testing.T) {
			lab.WantSameMetrics(t, consuls, l.metrics(t, l.startFromTemplate(t, 0)), isOfADS)
		})
		t.Run("template for consul-dataplane, with drain", func(t *testing.T) {
			lab.WantSameMetrics(t, consuls, l.metrics(t, l.startFromTemplate(t, bootstrap.DefaultDrainTime)), func(metric, value string) bool {
				return isOfADS(metric, value) || lab.IsOfDrain(metric)
			})
		})
	})
}

// isOfADS reports whether a metric may differ because the template has gRPC's own client for the stream to Usher, which
// can send a token from a file. That client is no cluster of Envoy.
func isOfADS(metric, _ string) bool {
	return strings.Contains(metric, `envoy_cluster_name="local_agent"`) || strings.Contains(metric, `envoy_google_grpc_client_prefix="usher"`)
}

// statisticsLab is a lab whose gateway has statistics of all forms.
type statisticsLab struct {
	*lab.Lab
	usher *lab.Usher
	envoy string
}

func newStatisticsLab(t *testing.T, envoy string) statisticsLab {
	t.Helper()
	l := lab.Start(t, lab.ConsulNew, envoy, false)
	for _, entry := range append(slices.Clone(servicesOfStatistics), gatewayOfStatistics) {
		l.Consul.WriteEntry(t, entry)
	}
	s := statisticsLab{l, lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul}), envoy}
	// The service and its sidecar answer before the first Envoy is measured: the requests of all have the same answers.
	first := s.startConsuls(t)
	lab.WaitStatus(t, lab.Request{From: l.Client, To: l.Gateway.Addr(8080), Path: "/", Host: lab.ServiceHost}, http.StatusOK)
	first.Stop(t)
	return s
}

// startConsuls starts an Envoy with the bootstrap of `consul connect envoy`.
func (l statisticsLab) startConsuls(t *testing.T, args ...string) *lab.Envoy {
	t.Helper()
	return lab.StartGateway(t, lab.GatewayOptions{
		Host: l.Gateway, Consul: l.Consul, Envoy: l.envoy, GRPCAddr: l.usher.GRPCAddr, Args: args,
	})
}

// startUshers starts an Envoy with the bootstrap of `usher bootstrap`.
func (l statisticsLab) startUshers(t *testing.T, args ...string) *lab.Envoy {
	t.Helper()
	return lab.StartBootstrapped(t, lab.BootstrapOptions{
		Host: l.Gateway, Envoy: l.envoy, XDSAddr: l.usher.GRPCAddr,
		Args: append(args, "--datacenter", "dc1", "--ready-addr", l.Gateway.Addr(8443)),
	})
}

// startFromTemplate starts an Envoy with the template for consul-dataplane. `consul connect envoy` fills it in with the
// same code.
func (l statisticsLab) startFromTemplate(t *testing.T, drainTime time.Duration) *lab.Envoy {
	t.Helper()
	template := templateSetting(t, bootstrap.DataplaneOptions{XDSAddr: l.usher.GRPCAddr, DrainTime: drainTime})
	registerDefinition(t, l.Consul, gatewayDefinition(l.Gateway, template))
	return lab.StartEnvoy(t, lab.EnvoyOptions{
		Name: "ingress-gateway with the template", Host: l.Gateway, Consul: l.Consul, Envoy: l.envoy, AdminPort: 19000,
		Args: []string{
			"-gateway=ingress", "-proxy-id", "ingress-gateway", "-omit-deprecated-tags",
			"-envoy-ready-bind-address", l.Gateway.IP.String(), "-envoy-ready-bind-port", "8443",
		},
	})
}

// metrics makes requests of an Envoy, returns the values of its metrics by name and labels, and stops it.
func (l statisticsLab) metrics(t *testing.T, e *lab.Envoy) map[string]string {
	t.Helper()
	defer e.Stop(t)
	e.WaitListener(t, 8080)
	e.WaitListener(t, 9000)
	testprocess.Eventually(t, e.Name+" has started its workers", testprocess.StartDeadline, func() error {
		if e.Stat(t, "listener_manager.workers_started") == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	for _, r := range []struct {
		host, path string
		want       int
	}{
		{lab.ServiceHost, "/", http.StatusOK},
		{"split.ingress.consul", "/", http.StatusServiceUnavailable},
		{"split.ingress.consul", "/v2", http.StatusServiceUnavailable},
		{"other.example.com", "/", http.StatusNotFound},
	} {
		if got := (lab.Request{From: l.Client, To: l.Gateway.Addr(8080), Path: r.path, Host: r.host}).MustDo(t); got.Status != r.want {
			t.Errorf("%s%s is answered %d, want %d", r.host, r.path, got.Status, r.want)
		}
	}
	if _, _, err := (lab.TCPExchange{From: l.Client, To: l.Gateway.Addr(9000)}).Do(t.Context()); err == nil {
		t.Error("the database answers, which does not run")
	}
	ready := lab.Request{From: l.Balancer, To: l.Gateway.Addr(8443), Path: "/ready"}
	if got := ready.MustDo(t); got.Status != http.StatusOK {
		t.Errorf("/ready is answered %d, want 200", got.Status)
	}
	body, err := e.Admin("/stats/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	return lab.MetricsOf(body)
}

// TestRulesForLabelsAreConsuls gives the rules of both bootstraps the names of statistics that a gateway of Consul can
// have, and wants the same labels.
func TestRulesForLabelsAreConsuls(t *testing.T) {
	t.Parallel()
	l := lab.NewNetwork(t)
	consul := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: l.Control})
	registerDefinition(t, consul, gatewayDefinition(l.Gateway))
	consuls := rulesOf(t, testprocess.Run(t, testprocess.Command{
		Path: consul.Binary, Host: l.Control, Env: consul.Env(consul.DefaultToken()),
		Args: []string{
			"connect", "envoy", "-bootstrap", "-gateway=ingress", "-proxy-id", "ingress-gateway", "-grpc-addr", "http://127.0.0.1:18000",
			"-envoy-binary", lab.EnvoyBinary(t, lab.EnvoyNew), "-ignore-envoy-compatibility",
		},
	}, ""))
	own := rulesOf(t, testprocess.Run(t, testprocess.Command{
		Path: testprocess.Usher(t), Host: l.Control, Args: []string{"bootstrap", "--gateway", "ingress-gateway", "--datacenter", "dc1"},
	}, ""))
	for _, stat := range statisticsOfGateways() {
		consulsName, consulsLabels := consuls.apply(stat)
		name, labels := own.apply(stat)
		if name != consulsName || !maps.Equal(labels, consulsLabels) {
			t.Errorf("%s\nconsul: %s %v\nusher:  %s %v", stat, consulsName, consulsLabels, name, labels)
		}
	}
}

// statisticsOfGateways are names of statistics. Partitions are left out: Consul's rules take the partition's cluster
// web.team.east.dc1.internal-v1 for the subset web of a service "team", and Usher's give it its own labels.
func statisticsOfGateways() []string {
	const domain = "11111111-2222-3333-4444-555555555555.consul"
	var all []string
	for _, hash := range []string{"", "failover-target~0~", "failover-target~12~", "f8f8f8f8~"} {
		for _, subset := range []string{"", "v1.", "default.", "dc1."} {
			for _, service := range []string{"a", "web", "default", "internal", "external", "dc1", "consul", "web-1_2", "a-service-with-17", strings.Repeat("x", 63)} {
				for _, namespace := range []string{"default", "team", "default-2"} {
					for _, datacenter := range []string{"dc1", "dc2", "dc10", "default"} {
						all = append(all, "cluster."+hash+subset+service+"."+namespace+"."+datacenter+".internal."+domain)
					}
					if hash == "" && subset == "" {
						all = append(all, "cluster."+service+"."+namespace+".cloud.external."+domain, "cluster."+service+"."+namespace+".dc1.external."+domain)
					}
				}
			}
		}
	}
	for _, listener := range []string{
		"upstream.db.default.default.dc1", "upstream.db.default.dc1", "upstream.db.dc1", "upstream_peered.db.default.cloud",
		"upstream_peered.db.cloud", "ingress_upstream_9000_untrusted",
	} {
		all = append(all, "tcp."+listener)
	}
	all = append(all, "cluster.self_admin", "cluster.local_agent", "cluster.usher-collector:collector.internal:4317",
		"cluster.collector.observability.svc.cluster.local", "http.ingress_upstream_8080", "http.admin", "listener.10.0.0.1_8080",
		"cluster_manager", "server", "listener_manager")
	for i, name := range all {
		all[i] = name + ".upstream_rq_total"
		if strings.HasPrefix(name, "tcp.") {
			continue // what follows the listener has no dot
		}
		all = append(all, name+".ssl.ciphers.TLS_AES_128_GCM_SHA256", name+".external.upstream_rq_200", name+".circuit_breakers.default.cx_open")
	}
	return all
}

// labelRules are the rules of a bootstrap by which Envoy gives labels to statistics.
type labelRules []labelRule

type labelRule struct {
	label string
	regex *regexp.Regexp
}

func rulesOf(t *testing.T, printed testprocess.Result) labelRules {
	t.Helper()
	var b struct {
		StatsConfig struct {
			StatsTags []struct {
				Name  string `json:"tag_name"`
				Regex string
			} `json:"stats_tags"`
		} `json:"stats_config"`
	}
	if err := json.Unmarshal([]byte(printed.Stdout), &b); err != nil {
		t.Fatalf("%v in %s%s", err, printed.Stdout, printed.Stderr)
	}
	var rules labelRules
	for _, tag := range b.StatsConfig.StatsTags {
		if tag.Regex != "" {
			rules = append(rules, labelRule{tag.Name, regexp.MustCompile(tag.Regex)})
		}
	}
	if len(rules) == 0 {
		t.Fatalf("the bootstrap has no rules: %s", printed.Stdout)
	}
	return rules
}

// apply does what Envoy does: what the first group of an expression matches is no part of the metric's name, and the
// last group is the label's value.
func (rules labelRules) apply(stat string) (name string, labels map[string]string) {
	labels = map[string]string{}
	removed := make([]bool, len(stat))
	for _, r := range rules {
		match := r.regex.FindStringSubmatchIndex(stat)
		if match == nil {
			continue
		}
		for i := max(match[2], 0); i < match[3]; i++ {
			removed[i] = true
		}
		value := match[2:4]
		if len(match) > 4 {
			value = match[4:6]
		}
		if value[0] >= 0 && value[0] < value[1] {
			labels[r.label] = stat[value[0]:value[1]]
		}
	}
	var kept strings.Builder
	for i := range stat {
		if !removed[i] {
			kept.WriteByte(stat[i])
		}
	}
	return kept.String(), labels
}
