package consul

import (
	"net/http"
	"strings"
	"testing"
)

func TestReadySaysThatConsulDoesNotKnowTheToken(t *testing.T) {
	c := newFakeConsul(t)
	c.set("/v1/connect/ca/roots", reply{body: `{"TrustDomain": "x.consul", "Roots": [{"RootCert": "pem"}]}`})
	c.set("/v1/config/proxy-defaults", reply{status: http.StatusForbidden, body: "ACL not found"})
	w := c.watcher(t)
	run(t, w.Run)
	until(t, func() bool {
		err := w.Ready()
		return err != nil && strings.Contains(err.Error(), "ACL not found")
	})
	c.set("/v1/config/proxy-defaults", reply{body: "[]"})
	until(t, func() bool { return w.Ready() == nil })
}
