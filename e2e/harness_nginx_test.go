//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// startNginx starts an nginx that balances TCP connections from the host's ports
// to those of the target, and begins each with a PROXY header, which nginx
// writes in version 1 only.
func startNginx(t *testing.T, h, target *host, ports ...int) {
	t.Helper()
	dir := newDir(t)
	var servers strings.Builder
	for _, port := range ports {
		fmt.Fprintf(&servers, "  server { listen %s; proxy_pass %s; proxy_protocol on; }\n", h.addr(port), target.addr(port))
	}
	config := fmt.Sprintf(`load_module %s;
daemon off;
user root;
pid %s/pid;
error_log stderr notice;
events {}
stream {
%s}
`, binary(t, "/usr/lib/nginx/modules/ngx_stream_module.so", "make tools"), dir, servers.String())
	p := startProcess(t, command{
		Name: "nginx", Path: tool(t, "nginx", "nginx-core"), Host: h,
		Args: []string{"-e", "stderr", "-p", dir, "-c", writeFile(t, dir, "nginx.conf", config)},
	})
	p.WaitOutput(t, "start worker process ") // it has bound its ports by then
}
