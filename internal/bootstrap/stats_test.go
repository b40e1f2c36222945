package bootstrap_test

import (
	"regexp"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/usherproxy/usher/internal/bootstrap"
)

const trustDomain = "11111111-2222-3333-4444-555555555555"

// statsTags are the rules for labels in a bootstrap of `usher bootstrap`.
func statsTags(t *testing.T, o bootstrap.Options) []*metricsv3.TagSpecifier {
	t.Helper()
	o.Gateway, o.XDSAddr = "ingress-gateway", "127.0.0.1:18000"
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal([]byte(write(t, o)), &b); err != nil {
		t.Fatal(err)
	}
	if !b.GetStatsConfig().GetUseAllDefaultTags().GetValue() {
		t.Error("the bootstrap is without Envoy's own labels")
	}
	return b.GetStatsConfig().GetStatsTags()
}

// apply does what Envoy does with a statistic: it returns the metric's name, the labels that have a value, and which
// rules do not match.
func apply(t *testing.T, rules []*metricsv3.TagSpecifier, stat string) (name string, labels map[string]string, misses []string) {
	t.Helper()
	labels = map[string]string{}
	removed := make([]bool, len(stat))
	for _, r := range rules {
		if r.GetRegex() == "" {
			continue
		}
		match := regexp.MustCompile(r.GetRegex()).FindStringSubmatchIndex(stat)
		if match == nil {
			misses = append(misses, r.GetTagName())
			continue
		}
		for i := max(match[2], 0); i < match[3]; i++ {
			removed[i] = true
		}
		if value := match[len(match)-2:]; value[0] >= 0 && value[0] < value[1] {
			labels[r.GetTagName()] = stat[value[0]:value[1]]
		}
	}
	var kept strings.Builder
	for i, gone := range removed {
		if !gone {
			kept.WriteByte(stat[i])
		}
	}
	return kept.String(), labels, misses
}

func TestStatisticsOfClustersHaveConsulsLabels(t *testing.T) {
	for cluster, want := range map[string]map[string]string{
		"web.default.dc1.internal." + trustDomain: {
			"service": "web", "namespace": "default", "datacenter": "dc1", "routing_type": "internal",
			"trust_domain": trustDomain, "target": "web.default.dc1", "full_target": "web.default.dc1.internal." + trustDomain,
		},
		// A name whose length is no multiple of the rules' steps, in another namespace and datacenter.
		"a-service-with-17.team.dc-2.internal." + trustDomain: {
			"service": "a-service-with-17", "namespace": "team", "datacenter": "dc-2", "routing_type": "internal",
			"trust_domain": trustDomain, "target": "a-service-with-17.team.dc-2",
			"full_target": "a-service-with-17.team.dc-2.internal." + trustDomain,
		},
		"v2.web.default.dc1.internal." + trustDomain: {
			"service_subset": "v2", "service": "web", "namespace": "default", "datacenter": "dc1", "routing_type": "internal",
			"trust_domain": trustDomain, "target": "v2.web.default.dc1", "full_target": "v2.web.default.dc1.internal." + trustDomain,
		},
		// The service and the subset have the names of other parts.
		"default.default.default.dc1.internal." + trustDomain: {
			"service_subset": "default", "service": "default", "namespace": "default", "datacenter": "dc1",
			"routing_type": "internal", "trust_domain": trustDomain, "target": "default.default.default.dc1",
			"full_target": "default.default.default.dc1.internal." + trustDomain,
		},
		"failover-target~1~web.default.dc2.internal." + trustDomain: {
			"custom_hash": "failover-target~1", "service": "web", "namespace": "default", "datacenter": "dc2",
			"routing_type": "internal", "trust_domain": trustDomain, "target": "failover-target~1~web.default.dc2",
			"full_target": "failover-target~1~web.default.dc2.internal." + trustDomain,
		},
		"f8f8f8f8~v2.web.default.dc1.internal." + trustDomain: {
			"custom_hash": "f8f8f8f8", "service_subset": "v2", "service": "web", "namespace": "default", "datacenter": "dc1",
			"routing_type": "internal", "trust_domain": trustDomain, "target": "f8f8f8f8~v2.web.default.dc1",
			"full_target": "f8f8f8f8~v2.web.default.dc1.internal." + trustDomain,
		},
		"web.team.east.dc1.internal-v1." + trustDomain: {
			"service": "web", "namespace": "team", "partition": "east", "datacenter": "dc1", "routing_type": "internal-v1",
			"trust_domain": trustDomain, "target": "web.team.east.dc1", "full_target": "web.team.east.dc1.internal-v1." + trustDomain,
		},
		"v2.web.team.east.dc1.internal-v1." + trustDomain: {
			"service_subset": "v2", "service": "web", "namespace": "team", "partition": "east", "datacenter": "dc1",
			"routing_type": "internal-v1", "trust_domain": trustDomain, "target": "v2.web.team.east.dc1",
			"full_target": "v2.web.team.east.dc1.internal-v1." + trustDomain,
		},
		"web.default.cloud.external." + trustDomain: {
			"service": "web", "namespace": "default", "peer": "cloud", "routing_type": "external",
			"trust_domain": trustDomain, "target": "web.default.cloud", "full_target": "web.default.cloud.external." + trustDomain,
		},
	} {
		for name, o := range map[string]bootstrap.Options{"dc1": {Datacenter: "dc1"}, "no datacenter": {}} {
			t.Run(cluster+", "+name, func(t *testing.T) {
				wanted := map[string]string{}
				for label, value := range want {
					wanted["consul.destination."+label] = value
					if label != "partition" && label != "peer" {
						wanted["consul."+label] = value
					}
				}
				metric, labels, _ := apply(t, statsTags(t, o), "cluster."+cluster+".consul.upstream_rq_total")
				if diff := cmp.Diff(wanted, labels); diff != "" {
					t.Errorf("labels (-want +got):\n%s", diff)
				}
				if metric != "cluster.upstream_rq_total" {
					t.Errorf("the metric is %s, want cluster.upstream_rq_total", metric)
				}
			})
		}
	}
}

// TestARuleMatchesEveryCluster: a rule that does not match costs ten times as much as one that does.
func TestARuleMatchesEveryCluster(t *testing.T) {
	rules := statsTags(t, bootstrap.Options{Datacenter: "dc1"})
	for _, cluster := range []string{
		"web.default.dc1.internal.", "v2.web.default.dc1.internal.", "web.default.dc2.internal.", "web.team.east.dc1.internal-v1.",
		"failover-target~0~web.default.dc1.internal.", "failover-target~0~v2.web.default.dc1.internal.",
	} {
		_, _, misses := apply(t, rules, "cluster."+cluster+trustDomain+".consul.upstream_rq_total")
		for _, name := range misses {
			if !strings.HasPrefix(name, "consul.upstream.") { // not tried on a cluster
				t.Errorf("the rule for %s does not match %s", name, cluster)
			}
		}
	}
}

// TestEnvoyTriesRulesOnlyWhereTheyCanMatch: Envoy leaves out a rule whose first part, up to the first dot, is not that
// of the statistic.
func TestEnvoyTriesRulesOnlyWhereTheyCanMatch(t *testing.T) {
	for _, r := range statsTags(t, bootstrap.Options{Datacenter: "dc1"}) {
		if regex := r.GetRegex(); regex != "" && !regexp.MustCompile(`^\^(cluster|tcp)\\\.`).MatchString(regex) {
			t.Errorf("the rule for %s is tried on every statistic: %s", r.GetTagName(), regex)
		}
	}
}

func TestOtherStatisticsHaveNoLabelsOfClusters(t *testing.T) {
	rules := statsTags(t, bootstrap.Options{Datacenter: "dc1"})
	for _, stat := range []string{
		"cluster.local_agent.upstream_rq_total", "cluster.self_admin.upstream_rq_total", "cluster_manager.active_clusters",
		"cluster.collector.observability.svc.cluster.local.upstream_rq_total", "cluster.vm.zone-b.project.internal.upstream_rq_total",
		"cluster.usher-collector:collector.internal:4317.upstream_rq_total", "http.ingress_upstream_8080.downstream_rq_total",
		"listener.10.0.0.10_8080.downstream_cx_total", "tcp.ingress_upstream_5432_untrusted.downstream_cx_total",
	} {
		if metric, labels, _ := apply(t, rules, stat); metric != stat || len(labels) > 0 {
			t.Errorf("%s becomes %s with the labels %v", stat, metric, labels)
		}
	}
}

func TestStatisticsOfTCPListenersHaveConsulsLabels(t *testing.T) {
	for stat, want := range map[string]map[string]string{
		"tcp.upstream.db.default.default.dc1.downstream_cx_total": {
			"service": "db", "namespace": "default", "partition": "default", "datacenter": "dc1",
		},
		"tcp.upstream.db.default.dc1.downstream_cx_total": {"service": "db", "namespace": "default", "datacenter": "dc1"},
		"tcp.upstream.db.dc1.downstream_cx_total":         {"service": "db", "datacenter": "dc1"},
		"tcp.upstream_peered.db.default.cloud.downstream_cx_total": {
			"service": "db", "namespace": "default", "peer": "cloud",
		},
	} {
		wanted := map[string]string{}
		for label, value := range want {
			wanted["consul.upstream."+label] = value
		}
		metric, labels, _ := apply(t, statsTags(t, bootstrap.Options{}), stat)
		if diff := cmp.Diff(wanted, labels); diff != "" {
			t.Errorf("labels of %s (-want +got):\n%s", stat, diff)
		}
		if metric != "tcp.upstream.downstream_cx_total" && metric != "tcp.upstream_peered.downstream_cx_total" {
			t.Errorf("the metric of %s is %s", stat, metric)
		}
	}
}

func TestStatisticsSayWhatTheyAreOf(t *testing.T) {
	for name, tc := range map[string]struct {
		o    bootstrap.Options
		want map[string]string
	}{
		"defaults": {bootstrap.Options{}, map[string]string{
			"local_cluster": "ingress-gateway", "consul.source.service": "ingress-gateway",
			"consul.source.namespace": "default", "consul.source.partition": "default",
		}},
		"everything": {bootstrap.Options{Namespace: "team", Partition: "east", Datacenter: "dc1"}, map[string]string{
			"local_cluster": "ingress-gateway", "consul.source.service": "ingress-gateway",
			"consul.source.namespace": "team", "consul.source.partition": "east", "consul.source.datacenter": "dc1",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got := map[string]string{}
			for _, r := range statsTags(t, tc.o) {
				if r.GetRegex() == "" {
					got[r.GetTagName()] = r.GetFixedValue()
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("labels of all statistics (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDeprecatedLabelsCanBeLeftOut(t *testing.T) {
	for _, r := range statsTags(t, bootstrap.Options{OmitDeprecatedTags: true}) {
		name := r.GetTagName()
		if !regexp.MustCompile(`^(consul\.(destination|upstream|source)\.|local_cluster$)`).MatchString(name) {
			t.Errorf("there is a rule for %s", name)
		}
	}
}

// TestATemplateReplacesConsulsRules gives the template what consul-dataplane makes of a gateway's settings for
// statistics.
func TestATemplateReplacesConsulsRules(t *testing.T) {
	text := dataplaneTemplate(t, dataplaneCases(t)["everything"])
	const begin, end = "{\n\t\t\t\"stats_tags\": [\n\t\t\t\t", "\n\t\t\t],\n\t\t\t\"use_all_default_tags\": true\n\t\t}"
	const rules = `{"regex":"^cluster\\.(x{1})","tag_name":"consul.destination.custom_hash"}` + ",\n" +
		`{"regex":"^(?:tcp|http)\\.(y)","tag_name":"consul.upstream.service"}`
	tag := func(name, value string) string {
		return "{\n\t\t\t\"tag_name\": \"" + name + "\",\n\t\t\t\"fixed_value\": \"" + value + "\"\n\t\t}"
	}
	own := `{"stats_tags": [{"regex":"^cluster\\.(z)","tag_name":"mine"}], "use_all_default_tags": false}`
	for name, tc := range map[string]struct {
		config string
		fixed  map[string]string
		ours   bool
	}{
		"no tags": {
			begin + rules + ",\n" + tag("local_cluster", "ingress-gateway") + ",\n" + tag("consul.source.datacenter", "dc1") + end,
			map[string]string{"local_cluster": "ingress-gateway", "consul.source.datacenter": "dc1"},
			true,
		},
		"tags of the gateway's": {
			begin + tag("env", "prod") + ",\n" + tag("tëam", `{\"regex\"`) + ",\n" + rules + ",\n" + tag("local_cluster", "ingress-gateway") + end,
			map[string]string{"env": "prod", "tëam": `{"regex"`, "local_cluster": "ingress-gateway"},
			true,
		},
		"all tags are the gateway's": {
			begin + tag("env", "prod") + ",\n" + rules + end, map[string]string{"env": "prod"}, true,
		},
		"a configuration of the gateway's own": {own, map[string]string{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			v := ofPlainGateway()
			v.StatsConfigJSON = tc.config
			_, b := v.fill(t, text)
			fixed, regexes := map[string]string{}, map[string]string{}
			for _, r := range b.GetStatsConfig().GetStatsTags() {
				if r.GetRegex() == "" {
					fixed[r.GetTagName()] = r.GetFixedValue()
				} else {
					regexes[r.GetTagName()] = r.GetRegex()
				}
			}
			if diff := cmp.Diff(tc.fixed, fixed); diff != "" {
				t.Errorf("labels of all statistics (-want +got):\n%s", diff)
			}
			if b.GetStatsConfig().GetUseAllDefaultTags().GetValue() != tc.ours {
				t.Error("use_all_default_tags has changed")
			}
			want := map[string]string{"mine": `^cluster\.(z)`}
			if tc.ours {
				want = map[string]string{}
				for _, r := range statsTags(t, bootstrap.Options{OmitDeprecatedTags: true, Datacenter: "dc1"}) {
					if r.GetRegex() != "" {
						want[r.GetTagName()] = r.GetRegex()
					}
				}
			}
			if diff := cmp.Diff(want, regexes); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
}
