//go:build e2e

package charts

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestUsherRunsAsInstalled installs the chart, and starts Usher as the kubelet would: with the arguments, the environment
// and the volumes of the pod, as the chart's service account. It becomes ready with a real Consul that has TLS and ACLs,
// and Envoys find the certificate of the chart on the xDS port.
func TestUsherRunsAsInstalled(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	consul := startConsul(t, true)
	c.create(t, secret("usher-token", "token", consul.createToken(t, testprocess.ReadFile(t, "../docs/usher-policy.hcl"))))
	c.create(t, secret("consul-ca-cert", "tls.crt", consul.ca))
	values := writeValues(t, fmt.Appendf(nil, `
global: {name: consul, tls: {enabled: true}, acls: {manageSystemACLs: true}}
ingressGateways: {enabled: true}
settings: {usher: {proxy_protocol: {trusted_cidrs: [10.0.16.0/20]}}}
consul: {httpAddr: %q, grpcAddr: %q, token: {secretName: usher-token}, envoyLogin: {authMethod: none}}
`, consul.http, consul.grpc))
	c.helm(t, "install", release, absolute(t, "usher"), "-f", values)

	xds, admin := fmt.Sprint("127.0.0.1:", testprocess.FreePort(t)), fmt.Sprint("127.0.0.1:", testprocess.FreePort(t))
	usher := c.startPod(t, c.get(t, "Deployment", "usher"), strings.NewReplacer("=:18000", "="+xds, "=:18001", "="+admin))
	testprocess.Eventually(t, "Usher is ready", testprocess.StartDeadline, func() error {
		if err := usher.Alive(); err != nil {
			return testprocess.Permanent(err)
		}
		return getReady(t, admin)
	})
	if out := usher.Output(t); strings.Contains(out, "level=ERROR") {
		t.Errorf("Usher reports an error: %s", out)
	}

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(secretData(t, c.get(t, "Secret", "usher-xds-ca"), "tls.crt"))
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "usher.consul.svc", NextProtos: []string{"h2"}}}
	connection, err := dialer.DialContext(t.Context(), "tcp", xds)
	if err != nil {
		t.Fatalf("an Envoy that trusts the chart's CA: %v", err)
	}
	connection.Close()
}

// getReady asks /readyz.
func getReady(t *testing.T, admin string) error {
	t.Helper()
	_, err := getText(t, "http://"+admin+"/readyz", "")
	return err
}

// getText asks for a page on a new connection, of a virtual host unless it is "". An answer other than 200 is an
// error.
func getText(t *testing.T, url, virtualHost string) (string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Host, request.Close = virtualHost, true
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%d %s", answer.StatusCode, body)
	}
	return string(body), err
}

// startPod starts Usher as the container of a pod of the Deployment, with other addresses and more flags. A
// process outside of the cluster finds the API server in a kubeconfig.
func (c *cluster) startPod(t *testing.T, deployment object, addresses *strings.Replacer, more ...string) *testprocess.Process {
	t.Helper()
	dir := c.mountVolumes(t, deployment)
	etc := strings.NewReplacer("/etc/usher/", dir+"/")
	var args []string
	for _, arg := range containerArgs(deployment) {
		args = append(args, etc.Replace(addresses.Replace(arg)))
	}
	args = append(append(args, more...), "--kubeconfig="+c.server.Kubeconfig(t, apiserver.Usher))
	var env []string
	container := deployment.at("spec", "template", "spec", "containers").([]any)[0].(map[string]any)
	for _, variable := range container["env"].([]any) {
		variable := variable.(map[string]any)
		env = append(env, variable["name"].(string)+"="+etc.Replace(variable["value"].(string)))
	}
	return testprocess.Start(t, testprocess.Command{Name: "usher", Path: testprocess.Usher(t), Args: args, Env: env})
}

// mountVolumes writes the volumes of a Deployment's pods to a directory, each below its name.
func (c *cluster) mountVolumes(t *testing.T, deployment object) string {
	t.Helper()
	dir := testprocess.NewDir(t)
	for _, volume := range deployment.at("spec", "template", "spec", "volumes").([]any) {
		volume := object(volume.(map[string]any))
		into := filepath.Join(dir, volume["name"].(string))
		if name, ok := volume.at("configMap", "name").(string); ok {
			for key, value := range c.get(t, "ConfigMap", name)["data"].(map[string]any) {
				writeFile(t, filepath.Join(into, key), value.(string))
			}
			continue
		}
		data := c.get(t, "Secret", volume.at("secret", "secretName").(string))["data"].(map[string]any)
		for _, item := range volume.at("secret", "items").([]any) {
			item := item.(map[string]any)
			value, err := base64.StdEncoding.DecodeString(data[item["key"].(string)].(string))
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(into, item["path"].(string)), string(value))
		}
	}
	return dir
}
