//go:build e2e

package charts

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/testing/golden"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestChart compares what the chart makes of each values file with the golden files: the objects, and the notes.
func TestChart(t *testing.T) {
	chart := chartWithNotes(t)
	golden.Run(t, "testdata", func(t *testing.T, in []byte) map[string]any {
		rendered, failure := template(t, chart, "-f", writeValues(t, in))
		if failure != "" {
			t.Fatal(failure)
		}
		all := map[string]any{}
		var notes any
		for _, o := range rendered {
			if o.kind() == "Notes" {
				notes = o["text"]
				continue
			}
			hideCertificates(o)
			hideDashboard(t, o)
			if all[o.id()] != nil {
				t.Errorf("two objects are %s", o.id())
			}
			all[o.id()] = map[string]any(o)
		}
		return map[string]any{"objects": all, "notes": notes}
	})
}

// hideCertificates replaces what differs each time that Helm renders.
func hideCertificates(o object) {
	data, ok := o["data"].(map[string]any)
	if o.kind() != "Secret" || !ok {
		return
	}
	for key := range data {
		data[key] = "made by Helm"
	}
	if annotations, ok := o.metadata()["annotations"].(map[string]any); ok {
		annotations["usher/for"], annotations["usher/issued"] = "made by Helm", "made by Helm"
	}
}

// hideDashboard replaces the dashboard, which is a file of the chart.
func hideDashboard(t *testing.T, o object) {
	t.Helper()
	if data, ok := o["data"].(map[string]any); ok && data["usher.json"] == testprocess.ReadFile(t, "usher/files/dashboard.json") {
		data["usher.json"] = "files/dashboard.json"
	}
}

func writeValues(t *testing.T, values []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, values, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestChartHasNoLint runs helm lint --strict on the chart with each values file.
func TestChartHasNoLint(t *testing.T) {
	args := []string{"lint", "--strict", absolute(t, "usher")}
	for _, name := range golden.Cases(t, "testdata") {
		end := helm(t, append(slices.Clone(args), "-f", absolute(t, "testdata/"+name+".in.yaml"))...)
		if end.Code != 0 {
			t.Errorf("%s: %s%s", name, end.Stdout, end.Stderr)
		}
	}
}

// TestMistakesInValues checks what Helm says about values that cannot be right.
func TestMistakesInValues(t *testing.T) {
	const acls, tls, gateway = "global.acls.manageSystemACLs=true", "global.tls.enabled=true", "ingressGateways.enabled=true"
	for _, c := range []struct {
		set  []string
		want string
	}{
		{[]string{"replica=3"}, "additional properties 'replica' not allowed"},
		{[]string{"xds.tls.mod=secret"}, "at '/xds/tls': additional properties 'mod' not allowed"},
		{[]string{"consul.global.name=consul"}, "at '/consul': additional properties 'global' not allowed"},
		{[]string{"xds.tls.mode=self-signed"}, "at '/xds/tls/mode': value must be one of 'chart', 'secret', 'cert-manager', 'consul-ca', 'none'"},
		{[]string{"replicas=two"}, "at '/replicas': got string, want integer"},
		{[]string{"drainTimeSeconds=601"}, "at '/drainTimeSeconds': maximum: got 601, want 600"},
		{[]string{"settings.proxy_protocol.mode=strict"}, "at '/settings': additional properties 'proxy_protocol' not allowed"},
		{[]string{"consul.httpAddr=consul.example.com"}, "at '/consul/httpAddr'"},

		{
			[]string{"server.enabled=false"},
			"server.enabled and externalServers.enabled are off, so the values do not say where Consul is; set consul.httpAddr and consul.grpcAddr",
		},
		{[]string{"global.enabled=false"}, "server.enabled and externalServers.enabled are off"},
		{
			[]string{"externalServers.enabled=true"},
			"externalServers.hosts is empty: name a server, or set consul.httpAddr and consul.grpcAddr",
		},
		{
			[]string{"externalServers.enabled=true", "externalServers.hosts={provider=aws tag_key=consul}"},
			`externalServers.hosts[0] "provider=aws tag_key=consul" finds servers with a command or a cloud, which Usher cannot do; set consul.httpAddr and consul.grpcAddr`,
		},
		{
			[]string{tls, "global.secretsBackend.vault.enabled=true"},
			"global.secretsBackend.vault.enabled: the certificate of Consul's CA is in Vault, which this chart does not read; " +
				"put it into a Secret and set consul.ca.secretName, or set consul.ca.pem or consul.ca.systemRoots",
		},
		{
			[]string{tls, "consul.namespace=mesh"},
			"the Secret consul-consul-ca-cert with Consul's CA is in the namespace mesh, and a pod in consul cannot mount it; install Usher in mesh, or set consul.ca.pem",
		},
		{
			[]string{"consul.token.secretName=t", "consul.login.authMethod=m"},
			"consul.token.secretName and consul.login.authMethod: Usher has either a token or a login; remove one of them",
		},
		{[]string{"gateways[0].name=a", "gateways[1].name=a"}, "gateways: two gateways have the name a; give each its own"},
		{[]string{"ingressGateways.enabled=true", "ingressGateways.gateways[0].replicas=1"}, "ingressGateways.gateways[0] has no name; add one"},
		{[]string{"xds.tls.mode=secret"}, "xds.tls.secretName is empty"},
		{[]string{"xds.tls.mode=cert-manager"}, "xds.tls.certManager.issuerRef.name is empty"},
		{
			[]string{acls, "xds.tls.mode=none"},
			"xds.tls.mode=none: Consul's ACLs are on, and Envoys would send their tokens unencrypted; use another mode",
		},
		{[]string{"xds.tls.mode=consul-ca"}, "xds.tls.mode=consul-ca needs Consul's CA in Secrets, and these values name none; use another mode"},
		{
			[]string{tls, "xds.tls.mode=consul-ca"},
			"xds.tls.mode=consul-ca: Helm found no tls.crt in the Secret consul/consul-consul-ca-cert, or no tls.key in the Secret consul/consul-consul-ca-key; " +
				"install Consul first, and let Helm talk to the cluster (helm template does not), or use another mode",
		},
		{
			[]string{"tokenReview.enabled=true"},
			"tokenReview.enabled: Envoys send no service account tokens, because global.acls.manageSystemACLs is off or consul.envoyLogin.authMethod is none; " +
				"set consul.envoyLogin.authMethod, or turn tokenReview off",
		},
		{
			[]string{acls, "dataplane.enabled=true", "xds.tls.mode=none", "consul.envoyLogin.authMethod=none"},
			"dataplane.enabled with xds.tls.mode=none: Consul's ACLs are on, and consul-dataplanes would send their tokens unencrypted; use another mode",
		},
		{
			[]string{"dataplane.enabled=true"},
			"dataplane.enabled and admission.shutdownGracePeriodSeconds are for the pods of gateways, and the values have none: " +
				"ingressGateways.enabled is off and gateways is empty; name them, or set admission.type to none",
		},
		{
			[]string{"gateways[0].name=edge", "gateways[0].namespace=team", "dataplane.enabled=true"},
			"gateways: the pods of edge are in the namespace team, and admission changes pods in consul only; " +
				"leave it out of admission.gateways, or set admission.type to none",
		},
		{
			[]string{gateway, "dataplane.enabled=true", "admission.gateways={edge}"},
			"admission.gateways: there is no gateway edge; use ingress-gateway",
		},
		{
			[]string{gateway, "admission.type=none", "admission.shutdownGracePeriodSeconds=60"},
			"admission.shutdownGracePeriodSeconds: admission.type is none, so nothing changes the pods; set it to auto, policy or webhook, or set this to 0",
		},
		{
			[]string{gateway, "dataplane.enabled=true", "admission.type=webhook", "xds.tls.mode=none"},
			"admission.type=webhook needs a webhook here, and Kubernetes calls webhooks with TLS only, which xds.tls.mode=none switches off; " +
				"use another mode, or set admission.type to policy (Kubernetes 1.34 with this API switched on, or later) or none",
		},
		{
			[]string{gateway, "dataplane.enabled=true", "admission.type=webhook", "xds.tls.mode=secret", "xds.tls.secretName=t"},
			"admission.webhook.caBundle is empty; with a webhook and xds.tls.mode=secret, it is the CA of the certificate in xds.tls.secretName",
		},
		{
			[]string{gateway, "dataplane.enabled=true", "consul.namespace=mesh"},
			"dataplane.enabled: the CA of Usher's certificate is in the Secret usher-xds-tls of the namespace consul, and the gateways' pods in mesh cannot mount it; " +
				"install Usher in mesh, or set xds.tls.mode=consul-ca, or dataplane.caFileInPod",
		},
		{
			[]string{gateway, "dataplane.drainTimeSeconds=60"},
			"dataplane.drainTimeSeconds: dataplane.enabled is false, so it has no effect; with the annotation, use usher helm-values --drain-time",
		},
		{
			[]string{gateway, "dataplane.enabled=true", "extraArgs={--dataplane-drain-time=60s}"},
			"extraArgs: --dataplane-drain-time=60s: the pods of gateways would not get the time to drain; use dataplane.drainTimeSeconds",
		},
		{
			[]string{gateway, "stateDir.enabled=true", "stateDir.claimName=usher-state"},
			"stateDir.claimName: a state directory belongs to a single Usher; set replicas to 1, or remove the claim so that each replica has an emptyDir",
		},
		{[]string{gateway, "dataplane.enabled=true", "dataplane.drainTimeSeconds=90000"}, "at '/dataplane/drainTimeSeconds': maximum: got 90,000, want 86,400"},
		{[]string{"admission.type=maybe"}, "at '/admission/type': value must be one of 'auto', 'policy', 'webhook', 'none'"},
		{[]string{"admission.gateway={a}"}, "at '/admission': additional properties 'gateway' not allowed"},
		{[]string{"consul.aclSetup.enabled=true"}, "consul.aclSetup.enabled: Usher does not log in"},
		{
			[]string{acls, "consul.aclSetup.enabled=true"},
			"consul.aclSetup.enabled: the values have no global.image, and Helm found no servers of Consul in the cluster; " +
				"set consul.aclSetup.image to an image that has the consul command",
		},
		{
			[]string{acls, "consul.aclSetup.enabled=true", "consul.namespace=mesh"},
			"consul.aclSetup.enabled: the Secret consul-consul-bootstrap-acl-token is in the namespace mesh, and a pod in consul cannot mount it; " +
				"install Usher in mesh, or set consul.aclSetup.secretName",
		},
	} {
		args := []string{}
		for _, set := range c.set {
			args = append(args, "--set", set)
		}
		if _, failure := template(t, "usher", args...); !strings.Contains(failure, c.want) {
			t.Errorf("%v: Helm says %q, want %q", c.set, failure, c.want)
		}
	}
}

// TestNames checks the names that follow from the release and from the values of the Consul chart.
func TestNames(t *testing.T) {
	for _, c := range []struct {
		release, want string
		set           []string
		host          string
	}{
		{"usher", "usher", nil, "consul-consul-server.consul.svc"},
		{"edge", "edge-usher", []string{"consul.release=mesh"}, "mesh-consul-server.consul.svc"},
		{"edge", "edge-usher", []string{"consul.release=mesh", "nameOverride=c"}, "mesh-c-server.consul.svc"},
		{"usher", "usher", []string{"consul.release=mesh", "global.name=c"}, "c-server.consul.svc"},
		{"usher", "usher", []string{"fullnameOverride=full", "global.name=c"}, "full-server.consul.svc"},
		{"edge", "proxy", []string{"name=proxy", "consul.namespace=mesh"}, "consul-consul-server.mesh.svc"},
	} {
		args := []string{"template", c.release, absolute(t, "usher"), "--namespace", "consul", "--show-only", "templates/deployment.yaml"}
		for _, set := range c.set {
			args = append(args, "--set", set)
		}
		end := helm(t, args...)
		if end.Code != 0 {
			t.Fatal(end.Stderr)
		}
		find(t, objects(t, end.Stdout), "Deployment", c.want)
		if !strings.Contains(end.Stdout, "http://"+c.host+":8500") {
			t.Errorf("%v: the address of Consul is not %s:\n%s", c.set, c.host, end.Stdout)
		}
	}
}

// TestConsulValuesOfNull sets what the Consul chart has defaults for to null, as values files do.
func TestConsulValuesOfNull(t *testing.T) {
	for _, values := range []string{
		"global: null", "global: {tls: null, acls: null, metrics: null, adminPartitions: null, secretsBackend: null, extraLabels: null}",
		"global: {tls: {caCert: null}, acls: {bootstrapToken: null}, secretsBackend: {vault: null}, logLevel: null, name: null}",
		"externalServers: null", "server: null", "ingressGateways: null", "ingressGateways: {enabled: true, defaults: null}",
		"ingressGateways: {enabled: true, gateways: null}", "client: null",
	} {
		if _, failure := template(t, "usher", "-f", writeValues(t, []byte(values))); failure != "" {
			t.Errorf("%s: %s", values, failure)
		}
	}
}

// TestRenderingWithoutAClusterIsStable renders the chart twice, as Argo CD does: nothing differs but the certificate that
// xds.tls.mode=chart makes.
func TestRenderingWithoutAClusterIsStable(t *testing.T) {
	first, second := mustTemplate(t), mustTemplate(t)
	for i, o := range first {
		if name := o.metadata()["name"]; name == "usher-xds-tls" || name == "usher-xds-ca" {
			continue
		}
		if diff := cmp.Diff(o, second[i]); diff != "" {
			t.Errorf("another rendering has another %s: %s", o.id(), diff)
		}
	}
	if data := find(t, first, "Secret", "usher-report-key")["data"]; data != nil {
		t.Errorf("the chart writes the key: %v", data)
	}
}

// TestCertificate checks the certificate that Helm makes: an Envoy that trusts the CA accepts it for the Service.
func TestCertificate(t *testing.T) {
	rendered, failure := template(t, "usher", "-f", absolute(t, "testdata/ipv6.in.yaml"))
	if failure != "" {
		t.Fatal(failure)
	}
	secret, ca := find(t, rendered, "Secret", "usher-xds-tls"), find(t, rendered, "Secret", "usher-xds-ca")
	wantCertificate(t, secret, secretData(t, ca, "tls.crt"))
	leaf := certificate(t, secretData(t, secret, "tls.crt"))
	if err := leaf.VerifyHostname("usher.consul.svc.example.internal"); err != nil {
		t.Error(err)
	}
	if err := leaf.VerifyHostname("usher.example.com"); err != nil {
		t.Error(err)
	}
	if err := leaf.VerifyHostname("2001:db8::7"); err != nil {
		t.Error(err)
	}
	if left := time.Until(leaf.NotAfter); left < 2*365*24*time.Hour {
		t.Errorf("the certificate is valid for %v; Helm replaces it after a year at the earliest", left)
	}
}

// wantCertificate checks that a Secret has a certificate for the Service, from the CA.
func wantCertificate(t *testing.T, secret object, ca []byte) {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatalf("the CA is not PEM: %s", ca)
	}
	leaf := certificate(t, secretData(t, secret, "tls.crt"))
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "usher.consul.svc"}); err != nil {
		t.Errorf("an Envoy that trusts the CA refuses the certificate: %v", err)
	}
	if got := string(secretData(t, secret, "ca.crt")); got != string(ca) {
		t.Errorf("ca.crt is not the CA: %s", got)
	}
}

func secretData(t *testing.T, secret object, key string) []byte {
	t.Helper()
	encoded, _ := secret.at("data", key).(string)
	data, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(data) == 0 {
		t.Fatalf("%s has no %s: %v", secret.id(), key, err)
	}
	return data
}

func certificate(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("not PEM: %s", text)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestRightsAreTheDocumentedOnes compares the rules of the chart with those that the docs give to others.
func TestRightsAreTheDocumentedOnes(t *testing.T) {
	rendered := mustTemplate(t, "-f", absolute(t, "testdata/acls.in.yaml"))
	for doc, name := range map[string]string{"kubernetes-role.yaml": "usher", "kubernetes-record.yaml": "usher-balancers", "kubernetes-report-key.yaml": "usher-report-key"} {
		want := find(t, objects(t, testprocess.ReadFile(t, "../docs/"+doc)), "Role", name)
		if diff := cmp.Diff(want["rules"], find(t, rendered, "Role", name)["rules"]); diff != "" {
			t.Errorf("the Role %s differs from docs/%s (-docs +chart): %s", name, doc, diff)
		}
	}
	var want []string
	for line := range strings.Lines(testprocess.ReadFile(t, "../docs/usher-policy.hcl")) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			want = append(want, line)
		}
	}
	var got []string
	for line := range strings.Lines(rules(t, rendered)) {
		got = append(got, strings.TrimSpace(line))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the policy differs from docs/usher-policy.hcl (-docs +chart): %s", diff)
	}
}

// rules are the ACL rules that the Job of consul.aclSetup writes.
func rules(t *testing.T, rendered []object) string {
	t.Helper()
	for _, variable := range setupContainer(t, rendered)["env"].([]any) {
		if variable := variable.(map[string]any); variable["name"] == "RULES" {
			return variable["value"].(string)
		}
	}
	t.Fatal("the Job has no rules")
	return ""
}

// TestTerminationLeavesTimeToDrain checks that the kubelet does not end Usher while it drains.
func TestTerminationLeavesTimeToDrain(t *testing.T) {
	rendered, failure := template(t, "usher", "--set", "drainTimeSeconds=600")
	if failure != "" {
		t.Fatal(failure)
	}
	deployment := find(t, rendered, "Deployment", "usher")
	if got := deployment.at("spec", "template", "spec", "terminationGracePeriodSeconds"); got != 610 {
		t.Errorf("terminationGracePeriodSeconds is %v, want 610", got)
	}
}

var flagName = regexp.MustCompile(`--[a-z-]+`)

// TestFlagsExist checks that usher serve has each flag that the chart sets.
func TestFlagsExist(t *testing.T) {
	help := testprocess.Run(t, testprocess.Command{Name: "usher", Path: testprocess.Usher(t), Args: []string{"serve", "--help"}}, "")
	known := flagName.FindAllString(help.Stdout, -1)
	for _, name := range golden.Cases(t, "testdata") {
		rendered, failure := template(t, "usher", "-f", absolute(t, "testdata/"+name+".in.yaml"))
		if failure != "" {
			t.Fatal(failure)
		}
		for _, arg := range containerArgs(find(t, rendered, "Deployment", deploymentName(rendered))) {
			flag, _, _ := strings.Cut(arg, "=")
			if strings.HasPrefix(flag, "--") && !slices.Contains(known, flag) {
				t.Errorf("%s: usher serve has no flag %s", name, flag)
			}
		}
	}
}

// deploymentName is the name of the only Deployment.
func deploymentName(all []object) string {
	for _, o := range all {
		if o.kind() == "Deployment" {
			return o.metadata()["name"].(string)
		}
	}
	return ""
}

// containerArgs are the arguments of the container of a Deployment.
func containerArgs(deployment object) []string {
	container := deployment.at("spec", "template", "spec", "containers").([]any)[0].(map[string]any)
	var args []string
	for _, arg := range container["args"].([]any) {
		args = append(args, arg.(string))
	}
	return args
}
