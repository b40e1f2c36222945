package consul

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/gateway"
)

// TestCertificateOfAGatewayIsAMetric lets Consul renew the certificate of a gateway, and then ends the watch.
func TestCertificateOfAGatewayIsAMetric(t *testing.T) {
	const leafPath = "/v1/agent/connect/ca/leaf/gateway"
	c := newFakeGatewayWithInstances(t, "web")
	c.set(leafPath, reply{body: `{"CertPEM": "1", "PrivateKeyPEM": "key", "ValidAfter": "2030-01-01T00:00:00Z", "ValidBefore": "2030-01-04T00:00:00Z"}`})
	metrics := NewMetrics(nil)
	client := newTestClient(t, Config{HTTPAddr: c.url, Metrics: metrics})
	g := start(t, NewWatcher(client, WatcherOptions{}), "gateway")
	g.next(t, anyOne)
	wantCertificate(t, metrics, time.Date(2030, 1, 4, 0, 0, 0, 0, time.UTC), 72*time.Hour)

	c.set(leafPath, reply{body: `{"CertPEM": "2", "PrivateKeyPEM": "key", "ValidAfter": "2030-01-03T00:00:00Z", "ValidBefore": "2030-01-03T01:00:00Z"}`})
	g.next(t, func(s *gateway.Snapshot) bool { return s.Leaf.CertPEM == "2" })
	wantCertificate(t, metrics, time.Date(2030, 1, 3, 1, 0, 0, 0, time.UTC), time.Hour)

	g.stop()
	for _, of := range []prometheus.Collector{metrics.expiries, metrics.lifetimes} {
		if n := testutil.CollectAndCount(of); n != 0 {
			t.Errorf("%d series outlive the watch", n)
		}
	}
}

// TestExpiredCertificateForClientsIsTheMetric has a gateway whose clients see another certificate than services do, because
// it has expired.
func TestExpiredCertificateForClientsIsTheMetric(t *testing.T) {
	metrics, expired := NewMetrics(nil), time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	metrics.setCertificate(gateway.ID{Name: "gateway"}, leafOf(&gateway.Snapshot{
		Leaf:           &gateway.Leaf{ValidBefore: expired.Add(time.Hour)},
		DownstreamLeaf: &gateway.Leaf{ValidAfter: expired.Add(-time.Minute), ValidBefore: expired},
	}))
	wantCertificate(t, metrics, expired, time.Minute)
}

func wantCertificate(t *testing.T, m *Metrics, expiry time.Time, lifetime time.Duration) {
	t.Helper()
	if got := testutil.ToFloat64(m.expiries); got != float64(expiry.Unix()) {
		t.Errorf("the certificate expires at %v, want %v", time.Unix(int64(got), 0).UTC(), expiry)
	}
	if got := testutil.ToFloat64(m.lifetimes); got != lifetime.Seconds() {
		t.Errorf("the certificate is valid for %v s, want %v", got, lifetime)
	}
}
