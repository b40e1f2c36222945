package gateway_test

import (
	"testing"

	"github.com/usherproxy/usher/internal/gateway"
)

func TestSPIFFEID(t *testing.T) {
	for _, tc := range []struct {
		service gateway.ServiceName
		want    string
	}{
		{gateway.ServiceName{Name: "gw"}, "spiffe://td/ns/default/dc/dc1/svc/gw"},
		{gateway.ServiceName{Name: "gw", Namespace: "n"}, "spiffe://td/ns/n/dc/dc1/svc/gw"},
		{gateway.ServiceName{Name: "gw", Partition: "p"}, "spiffe://td/ap/p/ns/default/dc/dc1/svc/gw"},
		{gateway.ServiceName{Name: "gw", Partition: "default"}, "spiffe://td/ns/default/dc/dc1/svc/gw"},
	} {
		if got := tc.service.SPIFFEID("td", "dc1"); got != tc.want {
			t.Errorf("%+v: %s, want %s", tc.service, got, tc.want)
		}
	}
}
