//go:build e2e

package charts

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestUsherLogsInAsInstalled installs the chart with ACLs, and starts Usher as the kubelet would. Usher is not ready
// before the Job of consul.aclSetup has given its service account a role. Then it logs in by itself, and serves the Envoy
// of a gateway that has the bootstrap of `usher helm-values` and the token of its pod.
func TestUsherLogsInAsInstalled(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	consul := startConsul(t, true)
	createAuthMethod(t, c, consul.client)
	c.create(t, secret("consul-ca-cert", "tls.crt", consul.ca))
	c.create(t, secret("consul-bootstrap-acl-token", "token", managementToken))
	values := writeValues(t, fmt.Appendf(nil, `
global: {name: consul, image: "hashicorp/consul:1.22.7", tls: {enabled: true}, acls: {manageSystemACLs: true}}
ingressGateways: {enabled: true}
consul: {httpAddr: %q, grpcAddr: %q, aclSetup: {enabled: true}}
tokenReview: {enabled: true}
`, consul.http, consul.grpc))
	c.helm(t, "install", release, absolute(t, "usher"), "-f", values)

	xds, admin := fmt.Sprint("127.0.0.1:", testprocess.FreePort(t)), fmt.Sprint("127.0.0.1:", testprocess.FreePort(t))
	bearer := writeFile(t, filepath.Join(testprocess.NewDir(t), "token"), serviceAccountToken(t, c, "usher"))
	start := func() *testprocess.Process {
		return c.startPod(t, c.get(t, "Deployment", "usher"), strings.NewReplacer("=:18000", "="+xds, "=:18001", "="+admin),
			"--login-bearer-token-file="+bearer)
	}
	usher := start()
	testprocess.Eventually(t, "Usher says that it cannot log in", testprocess.StartDeadline, func() error {
		if err := usher.Alive(); err != nil {
			return testprocess.Permanent(err)
		}
		err := getReady(t, admin)
		if err == nil {
			return testprocess.Permanent(errors.New("ready without a role"))
		}
		if !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), authMethod) {
			return err
		}
		return nil
	})

	job := c.want(t, http.StatusOK, http.MethodGet, collection("Job", namespaceOfRelease), nil)["items"].([]any)[0].(map[string]any)
	files := strings.NewReplacer("/etc/usher/", c.mountVolumes(t, job)+"/")
	runJob(t, object(job).at("spec", "template", "spec", "containers").([]any)[0].(map[string]any), files)
	testprocess.Eventually(t, "Usher is ready", testprocess.StartDeadline, func() error { return getReady(t, admin) })
	for _, text := range []string{"level=ERROR", "lacks a permission; add it"} {
		if out := usher.Output(t); strings.Contains(out, text) {
			t.Errorf("the log has %q: %s", text, out)
		}
	}

	dir := testprocess.NewDir(t)
	token := filepath.Join(dir, "token")
	g := newGateway(t, c, consul, annotatedConfig(t, values, token,
		"--xds-addr", "https://"+xds, "--tls-server-name", "usher.consul.svc",
		"--ca-file", writeFile(t, filepath.Join(dir, "ca.pem"), string(secretData(t, c.get(t, "Secret", "usher-xds-ca"), "tls.crt")))))
	g.writeToken(t, c, token)
	g.waitHello(t, g.startEnvoy(t))
	g.waitReported(t, admin)
	key := secretData(t, c.get(t, "Secret", "usher-report-key"), "key")

	// The next Usher has the same key: it knows the reports of the listener that the last one has made.
	usher.Stop(t)
	c.helm(t, "upgrade", release, absolute(t, "usher"), "-f", values, "--set", "drainTimeSeconds=1")
	start()
	testprocess.Eventually(t, "the next Usher is ready", testprocess.StartDeadline, func() error { return getReady(t, admin) })
	g.waitReported(t, admin)
	g.wantListenersUnchanged(t)
	if got := secretData(t, c.get(t, "Secret", "usher-report-key"), "key"); len(key) != 32 || !bytes.Equal(got, key) {
		t.Errorf("the key was %d bytes, and is %d; want the same 32 bytes", len(key), len(got))
	}
}
