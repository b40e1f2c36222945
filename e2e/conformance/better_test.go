//go:build e2e

package conformance

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/e2e/lab"
)

// betters are cases in which a gateway of Consul's own does not work, and one of
// Usher's does, as far as it can.
var betters = []struct {
	name string
	// consul is a part of what goes wrong: the stream's end, what is invalid, or
	// what Envoy says.
	consul string
	// listeners are what Usher sends all the same.
	listeners []string
}{
	{name: "sds-cluster-inherited", consul: "ClusterName: value length must be at least 1", listeners: []string{"http:10.0.1.1:8443"}},
	{name: "host-with-port", consul: "Only unique values for domains are permitted", listeners: []string{"http:10.0.1.1:8080"}},
	{name: "limits-and-failover", consul: "the stream ended: rpc error: code = Internal", listeners: []string{"http:10.0.1.1:8080"}},
	{name: "ejection-time-zero", consul: "BaseEjectionTime: value must be greater than 0s", listeners: []string{"http:10.0.1.1:8081"}},
	{name: "host-names", consul: "malformed IP address", listeners: []string{"http:10.0.1.1:8080"}},
}

// TestBetterThanConsul shows, for each of them, what goes wrong with Consul, and
// that Envoy takes what Usher sends.
func TestBetterThanConsul(t *testing.T) {
	t.Parallel()
	s := startSuite(t, current)
	s.releases = envoys
	for _, b := range betters {
		t.Run(b.name, func(t *testing.T) {
			s.consul.reset(t)
			c := lab.ReadCases(t, "testdata/better/"+b.name+".yaml", func(c *lab.GatewayCase, name string) { c.Name = name })[0]
			if err := s.consul.load(c); err != nil {
				t.Fatal(err)
			}
			s.wantWrongWithConsul(t, b.consul)
			eventually(t, "Usher sends what can be sent", func() error {
				got := slices.Sorted(maps.Keys(s.everything(t, s.usher)[resource.ListenerType]))
				if !slices.Equal(got, b.listeners) {
					return fmt.Errorf("it sends the listeners %q, want %q", got, b.listeners)
				}
				return nil
			})
			s.takenByEnvoy(t, s.releases)
		})
	}
}

// wantWrongWithConsul waits until that goes wrong with what Consul sends: before
// an Envoy has all of it, or when it looks at it.
func (s *suite) wantWrongWithConsul(t *testing.T, want string) {
	t.Helper()
	e, stop := connect(t, s.consul.grpc)
	defer stop()
	timeout := time.NewTimer(settleDeadline)
	defer timeout.Stop()
	got := "nothing"
	for !strings.Contains(got, want) {
		select {
		case v := <-e.views:
			got = v.Missing
			if v.Missing == "" {
				got = fmt.Sprint(validateMode(t, envoys[0], bootstrapFile(t, v.Resources)))
			}
		case <-timeout.C:
			t.Errorf("with Consul: %s, want %q within %v", got, want, settleDeadline)
			return
		}
	}
}
