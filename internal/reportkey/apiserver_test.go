//go:build e2e

package reportkey

import (
	"log/slog"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/testing/apiserver"
)

// TestRealAPIServer has ten replicas start together, without the documented rights and with them.
func TestRealAPIServer(t *testing.T) {
	t.Parallel()
	api := apiserver.Start(t, apiserver.Options{})
	client, err := kubeapi.Connect(api.Kubeconfig(t, apiserver.Usher))
	if err != nil {
		t.Fatal(err)
	}
	attempt := func() map[evidence.Key]int {
		keys := make([]evidence.Key, 10)
		var all sync.WaitGroup
		for i := range keys {
			all.Go(func() {
				keys[i] = New(Options{
					Client: client, Logger: slog.New(slog.DiscardHandler), Secret: types.NamespacedName{Namespace: "consul", Name: "usher-report-key"},
					Report: func(found []problem.Problem) {
						for _, p := range found {
							if !strings.Contains(p.What, "give Usher get and update on this Secret (docs/kubernetes-report-key.yaml)") {
								t.Errorf("problem: %v", p)
							}
						}
					},
				}).Attempt(t.Context())
			})
		}
		all.Wait()
		counts := map[evidence.Key]int{}
		for _, k := range keys {
			counts[k]++
		}
		return counts
	}
	if keys := attempt(); keys[evidence.Key{}] != 10 {
		t.Errorf("keys without rights: %v", keys)
	}
	api.Grant(t, "../../docs/kubernetes-report-key.yaml")
	first, second := attempt(), attempt()
	if len(first) != 1 || len(second) != 1 || first[evidence.Key{}] != 0 {
		t.Errorf("the replicas have %d keys, and later ones %d", len(first), len(second))
	}
	for key := range first {
		if second[key] != 10 {
			t.Error("replicas that start later have another key")
		}
	}
}
