//go:build e2e

package conformance

import (
	"strings"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/e2e/lab"
)

func TestAllowanceIsForOneValueOfConsul(t *testing.T) {
	ejection := func(consul string) difference {
		return difference{TypeURL: resource.ClusterType, Path: "outlier_detection.max_ejection_percent", Before: consul, After: "absent"}
	}
	used := map[*allowance]bool{}
	left := unexplained([]difference{ejection("0"), ejection("30")}, lab.ConsulNew, used)
	if len(left) != 1 || left[0].Before != "30" {
		t.Errorf("unexplained: %v, want the one where Consul writes 30", left)
	}
	if len(used) != 1 {
		t.Errorf("%d allowances used, want 1", len(used))
	}
}

func TestAllowancesNameAFieldAndAReason(t *testing.T) {
	for _, a := range allowed {
		if a.path == "" || strings.Contains(a.path, "*") || a.reason == "" {
			t.Errorf("allowance %+v needs the path of one field, and a reason", a)
		}
	}
}
