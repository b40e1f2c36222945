//go:build e2e

package lab

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

const apacheModules = "/usr/lib/apache2/modules"

// RemoteIP is how the lab's Apache gets the client's address.
type RemoteIP string

const (
	// RemoteIPProxyProtocol reads it from a PROXY header on every connection.
	RemoteIPProxyProtocol RemoteIP = "RemoteIPProxyProtocol On"
	// RemoteIPForwardedFor reads it from X-Forwarded-For, where the sidecar on the same
	// host and the gateway are trusted.
	RemoteIPForwardedFor RemoteIP = "RemoteIPHeader X-Forwarded-For\nRemoteIPInternalProxy 127.0.0.1 " + GatewayIP
)

// Apache is a running Apache with mod_remoteip that answers "hello world".
type Apache struct {
	*testprocess.Process
	log string // path: one line a request: client's address, request line
}

// StartApache starts an Apache without keep-alive: a busy one closes idle connections
// without a response.
func StartApache(t *testing.T, h *Host, port int, mode RemoteIP) *Apache {
	t.Helper()
	dir := testprocess.NewDir(t)
	WriteFile(t, dir, "index.html", "hello world\n")
	a := &Apache{log: filepath.Join(dir, "access.log")}
	config := fmt.Sprintf(`ServerName lab
Listen %[1]d
PidFile %[2]s/pid
DefaultRuntimeDir %[2]s
LoadModule mpm_event_module %[3]s/mod_mpm_event.so
LoadModule authz_core_module %[3]s/mod_authz_core.so
LoadModule dir_module %[3]s/mod_dir.so
LoadModule remoteip_module %[3]s/mod_remoteip.so
User www-data
Group www-data
ErrorLog %[2]s/error.log
LogFormat "%%a %%r" lab
CustomLog %[4]s lab
DocumentRoot %[2]s
FallbackResource /index.html
KeepAlive Off
%[5]s
`, port, dir, moduleDir(t), a.log, mode)
	a.Process = testprocess.Start(t, testprocess.Command{
		Name: "apache", Path: testprocess.Debian(t, "apache2", "apache2-bin"), Host: h,
		Args: []string{"-X", "-f", WriteFile(t, dir, "apache.conf", config)},
	})
	testprocess.Eventually(t, "apache listens", testprocess.StartDeadline, func() error {
		if err := a.Alive(); err != nil {
			return err
		}
		conn, err := h.Dial(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			conn.Close()
		}
		return err
	})
	return a
}

// WaitClient waits for the line of a request in Apache's log and returns the address
// that it has for the client.
func (a *Apache) WaitClient(t *testing.T, path string) string {
	t.Helper()
	var client string
	testprocess.Eventually(t, "apache logs the request for "+path, testprocess.ChangeDeadline, func() error {
		for line := range strings.Lines(testprocess.ReadFile(t, a.log)) {
			if fields := strings.Fields(line); len(fields) == 4 && fields[2] == path {
				client = fields[0]
				return nil
			}
		}
		return fmt.Errorf("not in its log")
	})
	return client
}

// moduleDir is the folder of Apache's modules.
func moduleDir(t *testing.T) string {
	t.Helper()
	testprocess.Binary(t, filepath.Join(apacheModules, "mod_remoteip.so"), "make tools")
	return apacheModules
}
