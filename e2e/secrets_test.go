//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/credentials"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestNoSecretInAnyOutput runs every tool on a gateway whose configuration is full of secrets, and looks for each of them, in
// every encoding, in everything that the tools, the admin port and the log say.
func TestNoSecretInAnyOutput(t *testing.T) {
	t.Parallel()
	s := startSecretsLab(t)
	const envoyAdmin = "http://127.0.0.1:19000"
	source := []string{"--gateway", "ingress-gateway", "--config", s.usher.ConfigFile}
	for _, output := range []struct {
		name   string
		get    func(t *testing.T) string
		has    string   // what it must have, so that it shows something
		except []string // names of secrets that are its purpose
	}{
		// The commands. An exit status of 1 is a result.
		{name: "render", get: s.command(append(source, "render")...), has: "value: '[redacted]'"},
		{name: "render as JSON", get: s.command(append(source, "render", "-o", "json")...), has: `"value": "[redacted]"`},
		{name: "render with explanations", get: s.command(append(source, "render", "--explain")...), has: `"value":"[redacted]"`},
		{name: "diff with Consul", get: s.command(append(source, "diff", "--envoy-version", lab.EnvoyNew)...), has: "proxy_protocol"},
		{name: "diff with Envoy", get: s.command(append(source, "diff", "--envoy-admin", envoyAdmin, "--config", s.otherFile)...), has: "proxy_protocol"},
		{name: "validate", get: s.command("validate", s.usher.ConfigFile, s.otherFile), has: "no problems"},
		{name: "validate with Consul", get: s.command("validate", "--consul", s.badFile), has: `"strcit" is not allowed`},
		{name: "probe", get: s.command("probe", s.Gateway.Addr(8080)), has: "permissive"},
		{name: "helm-values", get: s.command("helm-values", "-f", s.valuesFile), has: "ingressGateways:"},
		{name: "bootstrap", get: s.command("bootstrap", "--gateway", "ingress-gateway", "--token-file", s.tokenFile), has: "x-consul-token", except: []string{"token of the gateway"}},
		{name: "status", get: s.command("status", "-o", "json"), has: `"serviceId": "ingress-gateway"`},
		{name: "doctor", get: s.command("doctor", "--gateway", "ingress-gateway", "--envoy-admin", envoyAdmin, "--observe", "0s", s.Gateway.Addr(8080)), has: "Consul"},
		{name: "version", get: s.command("version"), has: "usher "},
		{name: "support-bundle", get: s.bundle("--envoy-admin", envoyAdmin, "--config", s.otherFile), has: "/gateways/ingress-gateway/resources.json"},
		// The admin port.
		{name: "readyz", get: s.page("/readyz"), has: "ready"},
		{name: "metrics", get: s.page("/metrics"), has: "usher_build_info"},
		{name: "envoys", get: s.page("/envoys"), has: "ingress-gateway"},
		{name: "status page", get: s.page("/"), has: "<!doctype html>"},
		{name: "state", get: s.page("/status"), has: `"serviceId":"ingress-gateway"`},
		{name: "index", get: s.page("/debug/"), has: "/debug/snapshot"},
		{name: "gateways", get: s.page("/debug/gateways"), has: `"envoys":1`},
		{name: "snapshot", get: s.page("/debug/snapshot?gateway=ingress-gateway"), has: `"KeyPEM":"secret of `},
		{name: "resources", get: s.page("/debug/resources?gateway=ingress-gateway"), has: `"private_key":"[redacted]"`},
		{name: "process", get: s.page("/debug/process"), has: `"CONSUL_HTTP_TOKEN":"[redacted]"`},
		{name: "config", get: s.page("/debug/config"), has: `"value":"[redacted]"`},
		{name: "recent log", get: s.page("/debug/log"), has: "level=DEBUG"},
		{name: "goroutines", get: s.page("/debug/pprof/goroutine?debug=2"), has: "goroutine "},
		{name: "command line", get: s.page("/debug/pprof/cmdline"), has: "--config"},
		{name: "log", get: s.usher.Output, has: "level=DEBUG"},
	} {
		text := output.get(t)
		if !strings.Contains(text, output.has) {
			t.Errorf("%s has no %q:\n%s", output.name, output.has, text)
		}
		for secret, value := range s.secrets {
			if encoding := findSecret(text, value); encoding != "" && !slices.Contains(output.except, secret) {
				t.Errorf("%s has the %s, %s", output.name, secret, encoding)
			}
		}
	}
}

// secretsLab is a gateway with a secret in each place where one can be.
type secretsLab struct {
	*lab.Lab
	usher                                     *lab.Usher
	token                                     string // Usher's
	secrets                                   map[string]string
	tokenFile, otherFile, badFile, valuesFile string
}

func startSecretsLab(t *testing.T) *secretsLab {
	t.Helper()
	s := &secretsLab{Lab: lab.Start(t, lab.ConsulNew, lab.EnvoyNew, true)}
	s.token = s.Consul.NewToken(t, "usher", testprocess.ReadFile(t, "../docs/usher-policy.hcl"))
	own := s.Consul.NewToken(t, "ingress-gateway", gatewayRules)
	ca := lab.NewCertificateAuthority(t, "Usher CA")
	dir := testprocess.NewDir(t)
	certFile, keyFile := ca.Issue(t, dir, "usher.example.com", s.Gateway.IP)
	s.secrets = map[string]string{
		"management token": lab.ManagementToken, "key of gossip": s.Consul.Security.GossipKey, "token of Usher": s.token, "token of the gateway": own,
		"key of Usher's port": testprocess.ReadFile(t, keyFile),
		"report key":          "the-key-of-all-reports-0123456789", "value of Authorization": "Basic c2VydmljZTpzM2NyZXQtcGFzc3dvcmQ=",
		"cookie of a route": "session=s3cret-of-a-route", "cookie of a log filter": "session=s3cret-of-a-log-filter",
		"password in the values": "s3cret-of-the-values",
	}
	s.tokenFile = lab.WriteFile(t, dir, "token", own)
	s.otherFile = lab.WriteFile(t, dir, "other.hcl", s.config("strict"))
	s.badFile = lab.WriteFile(t, dir, "bad.hcl", "Kind = \"proxy-defaults\"\nName = \"global\"\nConfig "+strings.Replace(s.config("strcit"), "usher {", "{ usher {", 1)+"}\n")
	s.valuesFile = lab.WriteFile(t, dir, "values.yaml", fmt.Sprintf(`
global: {name: consul, acls: {manageSystemACLs: true, bootstrapToken: {secretName: a, secretKey: b}}, tls: {enabled: true}}
ingressGateways: {enabled: true, gateways: [{name: ingress-gateway}]}
server: {extraConfig: '{"password": "%s"}'}
`, s.secrets["password in the values"]))
	s.writeSecretEntries(t)
	address := s.Gateway.Addr(18000)
	s.usher = lab.StartUsher(t, lab.UsherOptions{
		Host: s.Gateway, Consul: s.Consul, Token: s.token, XDSAddr: address, Config: s.config("permissive"), Args: []string{
			"--tls-cert", certFile, "--tls-key", keyFile, "--log-level", "debug",
			"--connection-report-key-file", lab.WriteFile(t, dir, "report-key", s.secrets["report key"]),
		},
	})
	envoy := lab.StartGateway(t, lab.GatewayOptions{
		Host: s.Gateway, Consul: s.Consul, Envoy: lab.EnvoyNew, GRPCAddr: "https://" + address, Token: own,
		Args: []string{"-grpc-ca-file", lab.WriteFile(t, dir, "ca.pem", ca.PEM())},
	})
	envoy.WaitListener(t, 8080)
	port := lab.XDSPort{From: s.Gateway, Address: address, TLS: credentials.NewClientTLSFromCert(ca.Pool(), "usher.example.com")}
	for secret, name := range map[string]string{"key towards the mesh": lab.LeafSecret, "key for clients": lab.ServingSecret} {
		fake := lab.ConnectFakeEnvoy(t, port.Dial(t), fakeenvoy.Delta, own)
		s.secrets[secret] = lab.FetchKeyOf(t, fake, name)
		fake.Disconnect()
	}
	s.secrets["signature of reports"] = signatureOf(t, envoy)
	s.request(t)
	testprocess.Eventually(t, "only the real Envoy is connected", testprocess.ChangeDeadline, func() error {
		if text, err := s.usher.Admin("/debug/gateways"); err != nil || !strings.Contains(text, `"envoys":1`) {
			return errors.Join(err, errors.New(text))
		}
		return nil
	})
	return s
}

// config is the config file with a mode.
func (s *secretsLab) config(mode string) string {
	return fmt.Sprintf(`usher {
  proxy_protocol { mode = %q }
  access_log {
    request_header = { name = "cookie", value = %q }
    sinks = [{ type = "stdout" }]
  }
}
`, mode, s.secrets["cookie of a log filter"])
}

// writeSecretEntries writes config entries with a header for the service, a route for a cookie, and TLS for clients.
func (s *secretsLab) writeSecretEntries(t *testing.T) {
	t.Helper()
	s.Consul.WriteEntry(t, fmt.Sprintf(`
Kind = "ingress-gateway"
Name = "ingress-gateway"
TLS { Enabled = true }
Listeners = [{
  Port = 8080
  Protocol = "http"
  Services = [{ Name = "static-server", RequestHeaders { Set { Authorization = %q } } }]
}]
`, s.secrets["value of Authorization"]))
	s.Consul.WriteEntry(t, fmt.Sprintf(`
Kind = "service-router"
Name = "static-server"
Routes = [{
  Match { HTTP { Header = [{ Name = "cookie", Exact = %q }] } }
  Destination { Service = "static-server" }
}]
`, s.secrets["cookie of a route"]))
}

// signatureOf is what proves to Usher that a report comes from an Envoy, as the Envoy has it.
func signatureOf(t *testing.T, envoy *lab.Envoy) string {
	t.Helper()
	dump, err := envoy.Admin("/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`"usher-signature",\s*"value": "([0-9a-f]{64})"`).FindStringSubmatch(dump)
	if found == nil {
		t.Fatal("the Envoy has no signature of reports")
	}
	return found[1]
}

// request makes a request with secrets, which Envoy logs.
func (s *secretsLab) request(t *testing.T) {
	t.Helper()
	r := lab.Request{
		From: s.Client, To: s.Gateway.Addr(8080), Path: lab.NewPath(), Host: "static-server.ingress.consul", TLS: &tls.Config{InsecureSkipVerify: true},
		Header: http.Header{"Cookie": {s.secrets["cookie of a log filter"]}, "Authorization": {s.secrets["value of Authorization"]}},
	}
	lab.WaitStatus(t, r, http.StatusOK)
}

// command returns what a command of Usher prints.
func (s *secretsLab) command(args ...string) func(t *testing.T) string {
	if i := slices.IndexFunc(args, func(arg string) bool { return arg == "render" || arg == "diff" }); i > 0 { // it comes before its flags
		args = slices.Concat(args[i:i+1], args[:i], args[i+1:])
	}
	return func(t *testing.T) string {
		t.Helper()
		end := runUsher(t, s.Gateway, s.Consul.Env(s.token), args...)
		if end.Code != 0 && end.Code != 1 {
			t.Errorf("usher %q ends with %d: %s", args, end.Code, end.Stderr)
		}
		return end.Stdout + end.Stderr
	}
}

// page returns what Usher answers at its admin port.
func (s *secretsLab) page(path string) func(t *testing.T) string {
	return func(t *testing.T) string {
		t.Helper()
		text, err := s.usher.Admin(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return text
	}
}

// bundle returns the names and contents of all files in a support bundle, and what the command says.
func (s *secretsLab) bundle(args ...string) func(t *testing.T) string {
	return func(t *testing.T) string {
		t.Helper()
		end := runUsher(t, s.Gateway, s.Consul.Env(s.token), append([]string{"support-bundle", "-o", "-"}, args...)...)
		if end.Code != 0 || end.Stderr != "" {
			t.Errorf("usher support-bundle ends with %d: %s", end.Code, end.Stderr)
		}
		all := bytes.NewBufferString(end.Stderr)
		for r := tar.NewReader(unzipped(t, strings.NewReader(end.Stdout))); ; {
			header, err := r.Next()
			if errors.Is(err, io.EOF) {
				return all.String()
			}
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(all, header.Name)
			var content io.Reader = r
			if strings.HasSuffix(header.Name, ".gz") {
				content = unzipped(t, r)
			}
			if _, err := io.Copy(all, content); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func unzipped(t *testing.T, r io.Reader) io.Reader {
	t.Helper()
	out, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// findSecret returns how a secret is in a text; empty if it is not. A private key in PEM is also looked for line by line, and
// without PEM.
func findSecret(text, secret string) (encoding string) {
	values := []string{strings.TrimSpace(secret)}
	if block, _ := pem.Decode([]byte(secret)); block != nil {
		values = append(values, string(block.Bytes), "PRIVATE KEY-----")
		for line := range strings.Lines(secret) {
			if line = strings.TrimSpace(line); len(line) >= 16 && !strings.HasPrefix(line, "-----") {
				values = append(values, line)
			}
		}
	}
	for _, value := range values {
		quoted, err := json.Marshal(value)
		if err != nil {
			return err.Error()
		}
		for encoding, encoded := range map[string]string{
			"as it is": value, "in JSON": strings.Trim(string(quoted), `"`), "in a URL": url.QueryEscape(value),
			"in hex": hex.EncodeToString([]byte(value)), "in capital hex": strings.ToUpper(hex.EncodeToString([]byte(value))),
		} {
			if strings.Contains(text, encoded) {
				return encoding
			}
		}
		for offset := range 3 { // of the secret in a longer text that is encoded as a whole
			encoded := base64.RawStdEncoding.EncodeToString(slices.Concat(make([]byte, offset), []byte(value)))
			encoded = encoded[(8*offset+5)/6 : len(encoded)-1]
			for _, alphabet := range []string{encoded, strings.NewReplacer("+", "-", "/", "_").Replace(encoded)} {
				if strings.Contains(text, alphabet) {
					return "in base64"
				}
			}
		}
	}
	return ""
}

// TestFindSecret checks the search itself.
func TestFindSecret(t *testing.T) {
	t.Parallel()
	dir := testprocess.NewDir(t)
	_, keyFile := lab.NewCertificateAuthority(t, "CA").Issue(t, dir, "usher.example.com")
	key := testprocess.ReadFile(t, keyFile)
	block, _ := pem.Decode([]byte(key))
	quoted, _ := json.Marshal(key)
	for name, text := range map[string]string{
		"PEM": key, "JSON": string(quoted), "DER": string(block.Bytes), "DER in hex": hex.EncodeToString(block.Bytes),
		"DER in base64": base64.StdEncoding.EncodeToString(block.Bytes), "one line": strings.Split(key, "\n")[1],
		"PEM in base64":             base64.StdEncoding.EncodeToString([]byte(key)),
		"PEM in a longer base64":    base64.StdEncoding.EncodeToString([]byte("a" + key + "b")),
		"PEM in base64 for URLs":    base64.RawURLEncoding.EncodeToString([]byte("ab" + key)),
		"the end of a key in PEM":   "-----END EC PRIVATE KEY-----",
		"PEM in the JSON of a JSON": strings.ReplaceAll(string(quoted), `\n`, `\\n`),
	} {
		if findSecret("before "+text+" after", key) == "" {
			t.Errorf("%s is not found", name)
		}
	}
	if got := findSecret("nothing -----BEGIN CERTIFICATE-----", key); got != "" {
		t.Errorf("found %s", got)
	}
}
