//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// fileLab is the lab without a Consul: Usher and the gateway's Envoy on one
// host, what Consul would know in a directory there, and no sidecar at the
// service.
type fileLab struct {
	*lab.Network
	Dir     string
	First   *lab.EchoService // port 8080 of the service's host
	Second  *lab.EchoService // port 8081
	HAProxy *lab.HAProxy
	Usher   *lab.Usher
	Gateway *lab.Envoy
}

// TestFileMode serves a directory: the lab's custom resources, unchanged, and
// service definitions. Instances come and go, the mode changes, and intentions
// that deny the gateway remove the route of a service.
func TestFileMode(t *testing.T) {
	t.Parallel()
	l := startFileLab(t, "")
	lab.WaitStatus(t, l.call("/"), http.StatusOK)

	l.writeServices(t, 8080, 8081)
	l.waitReached(t, l.Second)
	l.writeServices(t, 8081)
	l.waitOnly(t, l.Second)

	l.HAProxy.SetHeader(t, lab.SendV2)
	lab.WaitStatus(t, l.call("/"), http.StatusBadRequest)
	l.writeResources(t, strictMode...)
	lab.WaitStatus(t, l.call("/"), http.StatusOK)
	l.wantClientsAddress(t)
	l.wantDenied(t)
}

// strictMode is what makes the lab's custom resources strict: what to replace,
// and by what.
var strictMode = []string{"spec:\n  accessLogs:", `spec:
  config:
    usher:
      proxy_protocol:
        mode: strict
  accessLogs:`}

// wantDenied has one of two services deny the gateway, and later allow it.
func (l *fileLab) wantDenied(t *testing.T) {
	t.Helper()
	two := append([]string{"- name: static-server\n---", "- name: static-server\n        - name: other\n---"}, strictMode...)
	other := l.call("/")
	other.Host = "other.ingress.consul"
	l.writeResources(t, two...)
	lab.WaitStatus(t, other, http.StatusOK)

	denied := l.Usher.WantProblem(t, fmt.Sprintf(`msg=problem where=%s:31 `+
		`what="service \"static-server\" is not routed, because its intentions deny the gateway \"ingress-gateway\" (%s:43); `+
		`allow it there, or remove the service from the listener"`, l.resources(), l.resources()),
		func() { l.writeResources(t, append(two, "action: allow", "action: deny")...) })
	lab.WaitStatus(t, l.call("/"), http.StatusNotFound)
	lab.WaitStatus(t, other, http.StatusOK)
	denied.WantFixed(t, func() { l.writeResources(t, two...) })
	lab.WaitStatus(t, l.call("/"), http.StatusOK)
}

// startFileLab starts it as it is at the lab's beginning; config is the content
// of the operator's own file, "" for none.
func startFileLab(t *testing.T, config string) *fileLab {
	t.Helper()
	return startFileLabOn(t, lab.EnvoyNew, config)
}

func startFileLabOn(t *testing.T, envoy, config string) *fileLab {
	t.Helper()
	l := &fileLab{Network: lab.NewNetwork(t), Dir: testprocess.NewDir(t)}
	l.First, l.Second = lab.StartEcho(t, l.Service, 8080), lab.StartEcho(t, l.Service, 8081)
	l.HAProxy = lab.StartHAProxy(t, lab.HAProxyOptions{
		Host: l.Balancer, Targets: []*lab.Host{l.Network.Gateway}, Ports: []int{8080}, Header: lab.SendNone,
	})
	l.writeResources(t)
	l.write(t, "other.hcl", `Kind = "service-defaults"
Name = "other"
Protocol = "http"
`)
	l.writeServices(t, 8080)
	l.Usher = lab.StartUsher(t, lab.UsherOptions{Host: l.Network.Gateway, Config: config, Args: []string{"--config-dir", l.Dir}})
	l.Gateway = lab.StartBootstrapped(t, lab.BootstrapOptions{Host: l.Network.Gateway, Envoy: envoy, XDSAddr: l.Usher.GRPCAddr})
	return l
}

// resources is the path of the file with the lab's custom resources.
func (l *fileLab) resources() string { return filepath.Join(l.Dir, "custom-resources.yaml") }

// writeResources writes the lab's custom resources, with something replaced by
// something else.
func (l *fileLab) writeResources(t *testing.T, oldNew ...string) {
	t.Helper()
	text := testprocess.ReadFile(t, "testdata/lab/custom-resources.yaml")
	for i := 0; i < len(oldNew); i += 2 {
		text = replaceOnce(t, text, oldNew[i], oldNew[i+1])
	}
	l.write(t, "custom-resources.yaml", text)
}

// writeServices writes a file with definitions of the gateway, of the service
// "other", and of static-server for each port that it listens on.
func (l *fileLab) writeServices(t *testing.T, ports ...int) {
	t.Helper()
	text := `services { name = "ingress-gateway", kind = "ingress-gateway" }` + "\n"
	for _, port := range append(ports, 0) {
		id, name := fmt.Sprintf("static-server-%d", port), "static-server"
		if port == 0 {
			id, name, port = "other", "other", 8080
		}
		text += fmt.Sprintf("services { id = %q, name = %q, address = %q, port = %d }\n", id, name, l.Service.IP, port)
	}
	l.write(t, "services.hcl", text)
}

// write replaces a file of the directory as an editor does.
func (l *fileLab) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.Rename(lab.WriteFile(t, testprocess.NewDir(t), name, content), filepath.Join(l.Dir, name)); err != nil {
		t.Fatal(err)
	}
}

func (l *fileLab) call(path string) lab.Request {
	return lab.Request{From: l.Client, To: l.Balancer.Addr(8080), Path: path}
}

// waitReached waits until a request reaches the instance.
func (l *fileLab) waitReached(t *testing.T, instance *lab.EchoService) {
	t.Helper()
	testprocess.Eventually(t, "the instance gets a request", testprocess.ChangeDeadline, func() error {
		path := lab.NewPath()
		l.call(path).MustDo(t).WantHello(t)
		if !instance.HasReceived(path) {
			return errors.New("the other one got it")
		}
		return nil
	})
}

// waitOnly waits until all requests reach the instance.
func (l *fileLab) waitOnly(t *testing.T, instance *lab.EchoService) {
	t.Helper()
	const consecutive = 20
	testprocess.Eventually(t, "the instance gets every request", testprocess.ChangeDeadline, func() error {
		for range consecutive {
			path := lab.NewPath()
			l.call(path).MustDo(t).WantHello(t)
			if !instance.HasReceived(path) {
				return errors.New("the other one got one")
			}
		}
		return nil
	})
}

// wantClientsAddress wants the client's own address in the access log and at
// the service, which has no sidecar here.
func (l *fileLab) wantClientsAddress(t *testing.T) {
	t.Helper()
	path := lab.NewPath()
	l.call(path).MustDo(t).WantHello(t)
	if got := l.Gateway.Log.WaitRequest(t, path).IP(t, "downstream_remote_address"); got != lab.ClientIP {
		t.Errorf("access log has %s for the client, want %s", got, lab.ClientIP)
	}
	if got := l.Second.Received(t, path).Header.Get("X-Forwarded-For"); got != lab.ClientIP {
		t.Errorf("the service got X-Forwarded-For %q, want %q", got, lab.ClientIP)
	}
}

func replaceOnce(t *testing.T, text, old, now string) string {
	t.Helper()
	if strings.Count(text, old) != 1 {
		t.Fatalf("%q is not once in\n%s", old, text)
	}
	return strings.Replace(text, old, now, 1)
}
