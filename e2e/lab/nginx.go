//go:build e2e

package lab

import (
	"fmt"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// StartNginx starts an nginx that balances TCP connections from the host's ports
// to those of the target, and begins each with a PROXY header, which nginx
// writes in version 1 only.
func StartNginx(t *testing.T, h, target *Host, ports ...int) {
	t.Helper()
	dir := testprocess.NewDir(t)
	var servers strings.Builder
	for _, port := range ports {
		fmt.Fprintf(&servers, "  server { listen %s; proxy_pass %s; proxy_protocol on; }\n", h.Addr(port), target.Addr(port))
	}
	config := fmt.Sprintf(`load_module %s;
daemon off;
user root;
pid %s/pid;
error_log stderr notice;
events {}
stream {
%s}
`, testprocess.Binary(t, "/usr/lib/nginx/modules/ngx_stream_module.so", "make tools"), dir, servers.String())
	p := testprocess.Start(t, testprocess.Command{
		Name: "nginx", Path: testprocess.Debian(t, "nginx", "nginx-core"), Host: h,
		Args: []string{"-e", "stderr", "-p", dir, "-c", WriteFile(t, dir, "nginx.conf", config)},
	})
	p.WaitOutput(t, "start worker process ") // it has bound its ports by then
}
