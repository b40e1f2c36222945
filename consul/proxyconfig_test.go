package consul

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/gateway"
)

func TestProxyConfigsAreAsRegistered(t *testing.T) {
	c := newFakeConsul(t)
	client := c.client(t, slog.DiscardHandler)
	edge := gateway.ID{Name: "edge"}
	c.set("/v1/catalog/service/edge", reply{body: `[
		{"ServiceID": "edge-1", "ServiceProxy": {"Config": {"envoy_bootstrap_json_tpl": "{}"}}},
		{"ServiceID": "edge-2", "ServiceProxy": {"Config": null}}
	]`})
	got, err := client.ProxyConfigs(t.Context(), edge)
	want := map[string]map[string]any{"edge-1": {"envoy_bootstrap_json_tpl": "{}"}, "edge-2": nil}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("error %v (-want +got)\n%s", err, diff)
	}
	c.set("/v1/catalog/service/edge", reply{body: `[]`, hidden: true})
	if _, err := client.ProxyConfigs(t.Context(), edge); !errors.Is(err, errAllFiltered) {
		t.Errorf("a hidden answer: %v", err)
	}
	c.set("/v1/catalog/service/edge", reply{body: `{`})
	if _, err := client.ProxyConfigs(t.Context(), edge); err == nil || !strings.HasPrefix(err.Error(), "unexpected answer: ") {
		t.Errorf("a broken answer: %v", err)
	}
	c.set("/v1/catalog/service/edge", reply{status: 403, body: "Permission denied"})
	if _, err := client.ProxyConfigs(t.Context(), edge); err == nil || !strings.HasSuffix(err.Error(), "give Usher's token service:read on the gateway and node:read") {
		t.Errorf("a refused query: %v", err)
	}
}
