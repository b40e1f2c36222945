package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/dataplane"
	"github.com/usherproxy/usher/xds"
)

// catalogClient returns a client of a catalog with a gateway "edge" and a sidecar of "web" on the node "n1".
func catalogClient(t *testing.T) *consul.Client {
	t.Helper()
	rows := map[string]string{
		"ID == `edge-1`": `{"ID": "edge-1", "Service": "edge", "Kind": "ingress-gateway"}`,
		"ID == `web-1`":  `{"ID": "web-1", "Service": "web-sidecar-proxy", "Kind": "connect-proxy"}`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.EscapedPath() {
		case "/v1/catalog/node-services/n1":
			_, _ = w.Write([]byte(`{"Node": {"Node": "n1"}, "Services": [` + rows[r.URL.Query().Get("filter")] + `]}`))
		case "/v1/catalog/service/edge":
			_, _ = w.Write([]byte(`[{"ServiceKind": "ingress-gateway"}]`))
		case "/v1/catalog/service/web", "/v1/catalog/service/new":
			_, _ = w.Write([]byte(`[]`))
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(server.Close)
	client, err := consul.NewClient(consul.Config{HTTPAddr: server.URL, Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// Consul serves the proxy with the node's id, whatever the node's cluster is: a gateway under another name must not reach it.
func TestTheRegistrationDecidesWhoIsAGateway(t *testing.T) {
	client := catalogClient(t)
	for _, c := range []struct {
		id, cluster, node string
		want              dataplane.Kind
		code              codes.Code
	}{
		{"edge-1", "edge", "n1", dataplane.Gateway, codes.OK},
		{"web-1", "web", "n1", dataplane.Other, codes.OK},
		{"web-1", "edge", "n1", dataplane.Other, codes.OK}, // a service may have the name of a gateway
		{"edge-1", "web", "n1", dataplane.NotRegistered, codes.InvalidArgument},
		{"edge-2", "edge", "n1", dataplane.GatewayByName, codes.OK},
		{"edge-1", "edge", "", dataplane.GatewayByName, codes.OK},
		{"new-1", "new", "n1", dataplane.NotRegistered, codes.OK},
		{"web-1", "web", "", dataplane.NotRegistered, codes.OK},
		{"web-1", "web", "n2", dataplane.NotRegistered, codes.Unknown}, // Consul does not answer
		{"", "web", "n1", dataplane.NotRegistered, codes.InvalidArgument},
	} {
		n := xds.Node{ID: c.id, Cluster: c.cluster, Metadata: map[string]string{"node_name": c.node}}
		if kind, err := kindOf(t.Context(), client, n); kind != c.want || status.Code(err) != c.code {
			t.Errorf("%q of %q on %q: %v, %v, want %v, %v", c.id, c.cluster, c.node, kind, err, c.want, c.code)
		}
	}
}

// otherCluster is the error for a gateway that names the cluster "web".
func otherCluster(t *testing.T) error {
	t.Helper()
	_, err := kindOf(t.Context(), catalogClient(t), xds.Node{ID: "edge-1", Cluster: "web", Metadata: map[string]string{"node_name": "n1"}})
	if err == nil || !strings.Contains(err.Error(), "node.cluster") {
		t.Fatalf("got %v", err)
	}
	return err
}
