//go:build e2e

package charts

import (
	"encoding/base64"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/golden"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestAPIServerAcceptsTheChart has a real API server check every object of every values file, with unknown fields
// refused, and its admission check the pods: the namespace is restricted.
func TestAPIServerAcceptsTheChart(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	for _, account := range []string{"default", "usher", "edge", "edge-usher"} { // what the pods need
		c.create(t, serviceAccount(account))
	}
	for _, name := range golden.Cases(t, "testdata") {
		rendered, failure := template(t, "usher", "-f", absolute(t, "testdata/"+name+".in.yaml"))
		if failure != "" {
			t.Fatal(failure)
		}
		for _, o := range rendered {
			if o.kind() == "ServiceAccount" {
				o.metadata()["name"] = "another" // it is there
			}
			if err := c.dryRun(t, o); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if o.kind() == "Deployment" || o.kind() == "Job" {
				if err := c.dryRun(t, podOf(o)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
	privileged := find(t, mustTemplate(t, "--set", "podSecurityContext.runAsNonRoot=false"), "Deployment", "usher")
	if err := c.dryRun(t, podOf(privileged)); err == nil || !strings.Contains(err.Error(), `violates PodSecurity \"restricted:latest\"`) {
		t.Errorf("the namespace admits a pod of root: %v", err)
	}
}

// mustTemplate renders the chart.
func mustTemplate(t *testing.T, args ...string) []object {
	t.Helper()
	rendered, failure := template(t, "usher", args...)
	if failure != "" {
		t.Fatal(failure)
	}
	return rendered
}

func serviceAccount(name string) object {
	return object{
		"apiVersion": "v1", "kind": "ServiceAccount",
		"metadata": map[string]any{"name": name, "namespace": namespaceOfRelease},
	}
}

// podOf is a pod as the controller of a Deployment or Job would create it.
func podOf(o object) object {
	template := o.at("spec", "template").(map[string]any)
	metadata, _ := template["metadata"].(map[string]any)
	return object{"apiVersion": "v1", "kind": "Pod", "spec": template["spec"], "metadata": map[string]any{
		"name": "pod", "namespace": namespaceOfRelease, "labels": metadata["labels"], "annotations": metadata["annotations"],
	}}
}

// TestInstallUpgradeUninstall does with the real Helm what an administrator does: install, upgrade with other values, go
// back, uninstall. The CA and what Usher has written stay, and after the end nothing is left.
func TestInstallUpgradeUninstall(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	var before []string
	testprocess.Eventually(t, "the API server has its own Service, which it makes last", testprocess.StartDeadline, func() error {
		if before = c.all(t); !slices.Contains(before, "Service/default/kubernetes") {
			return errors.New("it has not")
		}
		return nil
	})
	lab := absolute(t, "testdata/lab.in.yaml")
	everything := absolute(t, "testdata/everything.in.yaml")

	c.helm(t, "install", release, absolute(t, "usher"), "-f", lab)
	if !slices.Contains(c.all(t), "Deployment/consul/usher") {
		t.Fatal("there is no Deployment after helm install")
	}
	wantRights(t, c)
	first := c.get(t, "Secret", "usher-xds-tls")
	ca := secretData(t, c.get(t, "Secret", "usher-xds-ca"), "tls.crt")
	wantCertificate(t, first, ca)
	written := c.writeAsUsher(t)

	// Another upgrade with the same values keeps the certificate; with other names, only its CA.
	c.helm(t, "upgrade", release, absolute(t, "usher"), "-f", lab)
	if diff := cmp.Diff(first["data"], c.get(t, "Secret", "usher-xds-tls")["data"]); diff != "" {
		t.Errorf("an upgrade without a change replaces the certificate: %s", diff)
	}
	c.helm(t, "upgrade", release, absolute(t, "usher"), "-f", lab, "--set", "xds.tls.dnsNames={usher.example.com}")
	second := c.get(t, "Secret", "usher-xds-tls")
	wantCertificate(t, second, ca)
	if err := certificate(t, secretData(t, second, "tls.crt")).VerifyHostname("usher.example.com"); err != nil {
		t.Errorf("an upgrade with another name keeps the certificate: %v", err)
	}
	wantOldCertificateReplaced(t, c, lab, ca)
	written.wantUnchanged(t, c, "an upgrade with another name")

	c.helm(t, "upgrade", release, absolute(t, "usher"), "-f", everything, "--set", "name=usher")
	wantCertificate(t, c.get(t, "Secret", "usher-xds-tls"), ca)
	written.wantUnchanged(t, c, "an upgrade with other values")
	if got := c.get(t, "Deployment", "usher").at("spec", "replicas"); got != 3.0 {
		t.Errorf("%v replicas after the upgrade, want 3", got)
	}
	c.helm(t, "rollback", release, "1")
	if got := c.get(t, "Deployment", "usher").at("spec", "replicas"); got != 2.0 {
		t.Errorf("%v replicas after the rollback, want 2", got)
	}
	wantCertificate(t, c.get(t, "Secret", "usher-xds-tls"), ca)
	written.wantUnchanged(t, c, "a rollback")

	c.helm(t, "uninstall", release, "--wait")
	after := c.all(t)
	slices.Sort(before)
	slices.Sort(after)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("helm uninstall leaves something behind (-before +after): %s", diff)
	}
}

// written is what Usher writes into the objects that the chart creates empty, by their kinds.
type written map[string]object

// writeAsUsher writes with the rights of Usher's service account.
func (c *cluster) writeAsUsher(t *testing.T) written {
	t.Helper()
	usher, w := connect(t, c.server.Kubeconfig(t, apiserver.Usher)), written{}
	for kind, name := range map[string]string{"ConfigMap": "usher-balancers", "Secret": "usher-report-key"} {
		o := usher.get(t, kind, name)
		if o["data"] != nil {
			t.Errorf("the chart writes the data of %s: %v", o.id(), o["data"])
		}
		o["data"] = map[string]any{"key": "d3JpdHRlbiBieSBVc2hlcg=="}
		w[kind] = usher.want(t, http.StatusOK, http.MethodPut, collection(kind, namespaceOfRelease)+"/"+name, o)
	}
	return w
}

// wantUnchanged checks that a step has kept what Usher has written.
func (w written) wantUnchanged(t *testing.T, c *cluster, step string) {
	t.Helper()
	for kind, o := range w {
		if diff := cmp.Diff(o["data"], c.get(t, kind, o.metadata()["name"].(string))["data"]); diff != "" {
			t.Errorf("%s changes what Usher has written (-want +got): %s", step, diff)
		}
	}
}

// wantOldCertificateReplaced checks that an upgrade replaces a certificate that is a year old.
func wantOldCertificateReplaced(t *testing.T, c *cluster, values string, ca []byte) {
	t.Helper()
	before := secretData(t, c.get(t, "Secret", "usher-xds-tls"), "tls.crt")
	old := map[string]any{"metadata": map[string]any{"annotations": map[string]any{"usher/issued": "1700000000"}}}
	c.want(t, http.StatusOK, http.MethodPatch, collection("Secret", namespaceOfRelease)+"/usher-xds-tls", old)
	c.helm(t, "upgrade", release, absolute(t, "usher"), "-f", values, "--set", "xds.tls.dnsNames={usher.example.com}")
	secret := c.get(t, "Secret", "usher-xds-tls")
	wantCertificate(t, secret, ca)
	if string(before) == string(secretData(t, secret, "tls.crt")) {
		t.Error("an upgrade keeps a certificate that is more than a year old")
	}
}

// wantRights checks what Usher's service account may do: read the Service of its gateway, write its record and its key, and
// nothing else.
func wantRights(t *testing.T, c *cluster) {
	t.Helper()
	usher := connect(t, c.server.Kubeconfig(t, apiserver.Usher))
	services, records := collection("Service", namespaceOfRelease), collection("ConfigMap", namespaceOfRelease)
	gateway := "consul-consul-ingress-gateway"
	for _, r := range []struct {
		method, path string
		body         any
		want         int
	}{
		{http.MethodGet, services + "/" + gateway, nil, http.StatusNotFound}, // it may ask
		{http.MethodGet, services + "?fieldSelector=metadata.name=" + gateway, nil, http.StatusOK},
		{http.MethodGet, records + "/usher-balancers", nil, http.StatusOK},

		{http.MethodGet, services, nil, http.StatusForbidden},
		{http.MethodGet, services + "/usher", nil, http.StatusForbidden},
		{http.MethodDelete, services + "/" + gateway, nil, http.StatusForbidden},
		{http.MethodPatch, services + "/" + gateway, map[string]any{}, http.StatusForbidden},
		{http.MethodGet, records, nil, http.StatusForbidden},
		{http.MethodDelete, records + "/usher-balancers", nil, http.StatusForbidden},
		{http.MethodGet, collection("Secret", namespaceOfRelease), nil, http.StatusForbidden},
		{http.MethodGet, collection("Secret", namespaceOfRelease) + "/usher-xds-ca", nil, http.StatusForbidden},
		{http.MethodGet, collection("Secret", namespaceOfRelease) + "/usher-report-key", nil, http.StatusOK},
		{http.MethodDelete, collection("Secret", namespaceOfRelease) + "/usher-report-key", nil, http.StatusForbidden},
		{http.MethodGet, collection("Pod", namespaceOfRelease), nil, http.StatusForbidden},
		{http.MethodPost, "/apis/authentication.k8s.io/v1/tokenreviews", map[string]any{}, http.StatusForbidden},
	} {
		if code, body := usher.do(t, r.method, r.path, r.body); code != r.want {
			t.Errorf("Usher's account, %s %s: %d, want %d: %s", r.method, r.path, code, r.want, body)
		}
	}
}

// TestTokenReviewNeedsItsRight checks that the ClusterRole gives the right that --token-review needs.
func TestTokenReviewNeedsItsRight(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.helm(t, "install", release, absolute(t, "usher"), "--set", "tokenReview.enabled=true,global.acls.manageSystemACLs=true")
	usher := connect(t, c.server.Kubeconfig(t, apiserver.Usher))
	review := map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": map[string]any{"token": "x"}}
	answer := usher.want(t, http.StatusCreated, http.MethodPost, "/apis/authentication.k8s.io/v1/tokenreviews", review)
	if answer.at("status", "error") == nil {
		t.Errorf("the API server did not review the token: %v", answer)
	}
}

// TestConsulsCASigns checks xds.tls.mode=consul-ca: the certificate is from the CA in the Secrets of the Consul chart,
// stays across upgrades, and follows the CA.
func TestConsulsCASigns(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	upgrade := func() object {
		c.helm(t, "upgrade", "--install", release, absolute(t, "usher"), "--set", "global.tls.enabled=true,xds.tls.mode=consul-ca")
		return c.get(t, "Secret", "usher-xds-tls")
	}
	secrets := collection("Secret", namespaceOfRelease)

	cert, key := newConsulCA(t)
	c.create(t, secret("consul-consul-ca-cert", "tls.crt", cert))
	c.create(t, secret("consul-consul-ca-key", "tls.key", key))
	first := upgrade()
	wantCertificate(t, first, []byte(cert))
	if slices.Contains(c.all(t), "Secret/consul/usher-xds-ca") {
		t.Error("the chart makes another CA")
	}
	if diff := cmp.Diff(first["data"], upgrade()["data"]); diff != "" {
		t.Errorf("an upgrade without a change replaces the certificate: %s", diff)
	}

	cert, key = newConsulCA(t)
	c.want(t, http.StatusOK, http.MethodPatch, secrets+"/consul-consul-ca-cert", secret("consul-consul-ca-cert", "tls.crt", cert))
	c.want(t, http.StatusOK, http.MethodPatch, secrets+"/consul-consul-ca-key", secret("consul-consul-ca-key", "tls.key", key))
	wantCertificate(t, upgrade(), []byte(cert))
}

// newConsulCA returns the certificate and the key of a CA by Consul's own command.
func newConsulCA(t *testing.T) (cert, key string) {
	t.Helper()
	script := `"$0" tls ca create >/dev/null; cat consul-agent-ca.pem; echo; echo key; cat consul-agent-ca-key.pem`
	end := testprocess.Run(t, testprocess.Command{
		Name: "consul tls ca create", Path: "/bin/sh", Args: []string{"-euc", script, testprocess.Tool(t, testprocess.Consul, "consul")},
	}, "")
	cert, key, ok := strings.Cut(end.Stdout, "\nkey\n")
	if !ok {
		t.Fatalf("consul tls ca create: %s%s", end.Stdout, end.Stderr)
	}
	return cert, key
}

// secret is a Secret with one key, in the namespace of the release.
func secret(name, key, value string) object {
	return object{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": name, "namespace": namespaceOfRelease},
		"data": map[string]any{key: base64.StdEncoding.EncodeToString([]byte(value))},
	}
}
