package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// chartValues are files of values of the Consul chart: the lab's, and others.
const chartValues = "../../internal/consulchart/testdata/values/"

// helmValues runs usher helm-values.
func helmValues(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := rootCommand()
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	_, err = execute(t.Context(), cmd, append([]string{"helm-values"}, args...))
	return out.String(), errOut.String(), err
}

func TestHelmValuesPrintsTheOverrideAloneToStdout(t *testing.T) {
	lab, err := os.ReadFile(chartValues + "lab.yaml")
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr, err := helmValues(t, string(lab), "-f", "-", "-f", chartValues+"ppv2.yaml", "--chart-version", "1.9.11")
	if err != nil {
		t.Fatal(err)
	}
	want := "# Values by usher helm-values: Envoys of ingress-gateway connect to Usher at https://usher.consul.svc:18000.\n" +
		"# Give them to helm upgrade with a second -f, after your own values.\n" +
		"ingressGateways:\n  defaults:\n    annotations: |\n      consul.hashicorp.com/proxy-config-map: '{\"envoy_bootstrap_json_tpl\": \""
	if !strings.HasPrefix(stdout, want) {
		t.Errorf("stdout is\n%s\nwant it to begin\n%s", stdout, want)
	}
	for _, part := range []string{`usher.consul.svc`, `/consul/tls/ca/tls.crt`, `/var/run/secrets/kubernetes.io/serviceaccount/token`} {
		if !strings.Contains(stdout, part) {
			t.Errorf("the bootstrap has no %s:\n%s", part, stdout)
		}
	}
	for _, notice := range []string{
		"notice: stdin:8: controller: the chart ignores this key",
		"notice: --ca-file is not set, so Envoys verify Usher's certificate with Consul's CA (/consul/tls/ca/tls.crt); if another CA has signed it, set --ca-file\n",
	} {
		if !strings.Contains(stderr, notice) {
			t.Errorf("stderr is\n%s\nwant it to have\n%s", stderr, notice)
		}
	}
}

func TestHelmValuesTakesUsherFromFlags(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, testCA(t), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args       string
		has, hasNo []string
	}{
		{"--namespace mesh --usher-service gw", []string{"gw.mesh.svc"}, nil},
		{"--namespace mesh --usher-service edge/gw --tls-server-name usher.example", []string{"gw.edge.svc", "usher.example"}, nil},
		{"--ca-file " + ca, []string{"BEGIN CERTIFICATE"}, []string{"/consul/tls/ca/tls.crt"}},
		{"--ca-path-in-pod /etc/ca.pem", []string{"/etc/ca.pem"}, []string{"/consul/tls/ca/tls.crt"}},
		{"--send-token=false", nil, []string{"serviceaccount/token"}},
		{"", []string{`\"fixed_delay\": \"8s\"`}, []string{"terminationGracePeriodSeconds"}},
		{"--drain-time 90s", []string{`\"fixed_delay\": \"90s\"`, "terminationGracePeriodSeconds: 92\n"}, nil},
		{"--drain-time 0", nil, []string{"usher_quit", "terminationGracePeriodSeconds"}},
		{"--xds-addr usher.edge.svc:18000 --send-token=false", []string{"usher.edge.svc"}, []string{"/consul/tls/ca/tls.crt"}},
	} {
		stdout, _, err := helmValues(t, "", append(strings.Fields(tc.args), "-f", chartValues+"lab.yaml")...)
		if err != nil {
			t.Errorf("%s: %v", tc.args, err)
		}
		for _, part := range tc.has {
			if !strings.Contains(stdout, part) {
				t.Errorf("%s: the bootstrap has no %s:\n%s", tc.args, part, stdout)
			}
		}
		for _, part := range tc.hasNo {
			if strings.Contains(stdout, part) {
				t.Errorf("%s: the bootstrap has %s:\n%s", tc.args, part, stdout)
			}
		}
	}
}

// TestHelmValuesTakesItsOwnOverride runs it with the values that a release has after the upgrade.
func TestHelmValuesTakesItsOwnOverride(t *testing.T) {
	args := []string{"-f", chartValues + "lab.yaml"}
	first, _, err := helmValues(t, "", args...)
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := helmValues(t, first, append(args, "-f", "-")...)
	if err != nil || second != first {
		t.Errorf("error %v, and it prints\n%s\nwant\n%s", err, second, first)
	}
}

func TestHelmValuesStopsHelmAfterAnError(t *testing.T) {
	for args, want := range map[string]string{
		"-f " + chartValues + "tab.yaml":                       "tab.yaml:11:1: the indentation of this line has 2 TABs, and YAML indents with spaces only; begin it with 8 spaces, as line 10 does\n",
		"-f " + chartValues + "lab.yaml --gateway edge":        "--gateway edge: the values have no such gateway; use ingress-gateway",
		"-f " + chartValues + "lab.yaml --chart-version 1.1.0": "--chart-version 1.1.0: consul-k8s 1.1.0 does not read the annotation",
		"-f " + chartValues + "lab.yaml more":                  `takes no argument "more"`,
		"-f " + chartValues + "lab.yaml --gatway a":            "unknown flag: --gatway",
		"": "--values: the values of the Consul chart are needed",
	} {
		stdout, stderr, err := helmValues(t, "", strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), want) || stderr != "" {
			t.Errorf("%s: the error is %v, want %s; stderr is %q", args, err, want, stderr)
		}
		if err := yaml.Unmarshal([]byte(stdout), &map[string]any{}); err == nil || strings.Count(stdout, "\n") != 1 {
			t.Errorf("%s: Helm would go on with\n%s", args, stdout)
		}
	}
}

// testCA returns a CA certificate in PEM.
func testCA(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// TestHelmGetsNoEmptyValues has errors in flags and arguments: Helm would take an empty file for no values.
func TestHelmGetsNoEmptyValues(t *testing.T) {
	for _, args := range []string{"-namespace x", "--valus x", "x", ""} {
		if stdout, _, err := helmValues(t, "", strings.Fields(args)...); err == nil || stdout != noValues+"\n" {
			t.Errorf("usher helm-values %s: %v, and stdout has %q", args, err, stdout)
		}
	}
}
