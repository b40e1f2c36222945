package accesslog

import (
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
)

// TestConnectionsWithoutAFilterChainCannotHideOthers: connections with a chain
// count for their bound only after the filter for them, because anybody can make
// many others.
func TestConnectionsWithoutAFilterChainCannotHideOthers(t *testing.T) {
	logs, problems := Build(Params{
		Where: "listener 8080", Gateway: gateway.ID{Name: "gateway"}, Envoy: envoy.Capabilities{LogRateLimit: true},
		Report: Report{Name: "gateway:8080", Cluster: "local_agent", Metadata: []*corev3.HeaderValue{{Key: "k", Value: "v"}}},
	})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var with []string
	for _, log := range logs.Listener {
		filters := log.GetFilter().GetAndFilter().GetFilters()
		if len(filters) != 2 {
			t.Fatalf("a log has the filter %v", log.GetFilter())
		}
		if strings.Contains(filters[0].String(), "filter_chain_name != ''") {
			with = append(with, filters[1].String())
		}
	}
	if len(with) != 1 || !strings.Contains(with[0], "usher-report:gateway:8080") {
		t.Errorf("after the filter for connections with a chain: %q", with)
	}
	for name, bucket := range logs.TokenBuckets {
		if !strings.HasPrefix(name, "usher-report") || bucket.GetMaxTokens() == 0 {
			t.Errorf("bucket %s: %v", name, bucket)
		}
	}
	if len(logs.TokenBuckets) != 2 {
		t.Errorf("the logs share a bound: %v", logs.TokenBuckets)
	}
}
