package main

import (
	"strings"
	"testing"

	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/xds"
)

// No token and a wrong token are not the same mistake.
func TestARefusalSaysWhetherThereWasAToken(t *testing.T) {
	for _, tc := range []struct {
		err  error
		of   xds.Credential
		want string
	}{
		{consul.ErrUnknownToken, xds.Credential{}, "the stream came without x-consul-token"},
		{consul.ErrDenied, xds.Credential{}, "the stream came without x-consul-token"},
		{consul.ErrUnknownToken, xds.Credential{Token: "t"}, "consul does not know the stream's x-consul-token"},
		{consul.ErrDenied, xds.Credential{Token: "t"}, "the stream's x-consul-token needs service:write on the gateway"},
		{consul.ErrDenied, xds.Credential{Bearer: "b"}, "the service account of the stream's bearer token needs service:write"},
	} {
		got := status.Convert(refusal(tc.err, gateway.ID{Name: "edge"}, tc.of)).Message()
		if !strings.HasPrefix(got, tc.want) || !strings.Contains(got, `"edge"`) {
			t.Errorf("%v with %v: got %q, want %q", tc.err, tc.of, got, tc.want)
		}
	}
}
