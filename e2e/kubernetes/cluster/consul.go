//go:build kubernetes

package cluster

import (
	"net/http"
	"testing"

	"github.com/hashicorp/consul/api"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Consul returns a client of the Consul server that the chart runs in a
// namespace, with the bootstrap token. prefix is that of the chart's objects.
func (c *Cluster) Consul(t *testing.T, namespace, prefix string) *api.Client {
	t.Helper()
	servers := c.Pods(t, namespace, "component=server")
	if len(servers) == 0 {
		t.Fatal("there is no Consul server")
	}
	secret, err := c.API.CoreV1().Secrets(namespace).Get(t.Context(), prefix+"-bootstrap-acl-token", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: c.Control.Dial}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := api.NewClient(&api.Config{
		Address: servers[0].Host.Addr(8500), Token: string(secret.Data["token"]), HttpClient: &http.Client{Transport: transport},
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}
