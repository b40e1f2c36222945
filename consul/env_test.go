package consul

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// vars is an environment.
type vars map[string]string

func (v vars) get(name string) string { return v[name] }

func TestAddressesAreThoseOfConsulsCLI(t *testing.T) {
	for _, test := range []struct {
		flag string
		env  vars
		want string
	}{
		{want: "http://localhost:8500"},
		{flag: "10.0.0.1:8500", want: "http://10.0.0.1:8500"},
		{flag: "[::1]:8500", want: "http://[::1]:8500"},
		{flag: "http://consul:8500", want: "http://consul:8500"},
		{flag: "https://consul.example.com", want: "https://consul.example.com"},
		{flag: "HTTPS://consul:8501/behind/a/proxy/", want: "https://consul:8501/behind/a/proxy"},
		{flag: "unix:///run/consul.sock", want: "unix:///run/consul.sock"},
		{env: vars{"CONSUL_HTTP_ADDR": "consul:8500"}, want: "http://consul:8500"},
		{flag: "flag:1", env: vars{"CONSUL_HTTP_ADDR": "env:2"}, want: "http://flag:1"},
		{flag: "consul:8501", env: vars{"CONSUL_HTTP_SSL": "true"}, want: "https://consul:8501"},
		{flag: "http://consul:8501", env: vars{"CONSUL_HTTP_SSL": "1"}, want: "https://consul:8501"},
		{flag: "https://consul:8501", env: vars{"CONSUL_HTTP_SSL": "false"}, want: "https://consul:8501"},
		{flag: "unix:///run/consul.sock", env: vars{"CONSUL_HTTP_SSL": "true"}, want: "unix:///run/consul.sock"},
	} {
		c := newTestClient(t, Config{HTTPAddr: test.flag, Getenv: test.env.get})
		if got := c.Address(); got != test.want {
			t.Errorf("%q with %v: address %q, want %q", test.flag, test.env, got, test.want)
		}
	}
}

func TestABadSettingIsOneClearError(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	for _, test := range []struct {
		config Config
		env    vars
		want   []string
	}{
		{config: Config{HTTPAddr: "ftp://consul"}, want: []string{`--consul-http-addr "ftp://consul"`, "scheme", "unix://"}},
		{config: Config{HTTPAddr: "8500"}, want: []string{"port alone", "localhost:8500"}},
		{config: Config{HTTPAddr: ":8500"}, want: []string{"host is missing"}},
		{config: Config{HTTPAddr: "consul:"}, want: []string{"port is missing"}},
		{config: Config{HTTPAddr: "consul:http"}, want: []string{"consul:http"}},
		{config: Config{HTTPAddr: "consul:70000"}, want: []string{"1 to 65535"}},
		{config: Config{HTTPAddr: "unix://"}, want: []string{"path of the socket"}},
		{config: Config{HTTPAddr: "http://consul:8500?token=x"}, want: []string{"must end"}},
		{env: vars{"CONSUL_HTTP_ADDR": "consul:x"}, want: []string{"CONSUL_HTTP_ADDR"}},
		{env: vars{"CONSUL_HTTP_SSL": "maybe"}, want: []string{"CONSUL_HTTP_SSL", `"maybe"`}},
		{env: vars{"CONSUL_HTTP_SSL_VERIFY": "maybe"}, want: []string{"CONSUL_HTTP_SSL_VERIFY"}},
		{env: vars{"CONSUL_CACERT": missing}, want: []string{"CONSUL_CACERT", missing}},
		{env: vars{"CONSUL_CLIENT_CERT": missing}, want: []string{"CONSUL_CLIENT_CERT", "key"}},
		{env: vars{"CONSUL_HTTP_TOKEN_FILE": missing}, want: []string{"CONSUL_HTTP_TOKEN_FILE", missing}},
		{config: Config{GRPCAddr: "consul"}, want: []string{"--consul-grpc-addr", "consul:8502"}},
		{config: Config{GRPCAddr: "http://consul:8502/x"}, want: []string{"no path"}},
		{env: vars{"CONSUL_GRPC_ADDR": "ftp://consul:1"}, want: []string{"CONSUL_GRPC_ADDR"}},
		{env: vars{"CONSUL_GRPC_ADDR": "https://consul:1", "CONSUL_GRPC_CACERT": missing}, want: []string{missing}},
	} {
		test.config.Getenv = test.env.get
		_, err := NewClient(test.config)
		if err == nil {
			t.Errorf("%+v with %v is accepted", test.config.HTTPAddr, test.env)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %q does not say %q", err, want)
			}
		}
	}
}

func TestAPasswordInAnAddressIsNotPrinted(t *testing.T) {
	for _, addr := range []string{
		"http://root:hunter2@consul:8500", "https://root:hunter2@consul:x", "root:hunter2@consul:8500",
		"http://root:hunter2,ss@consul:8500", "http://root:hunter2,99@consul:8500", "http://root:1,hunter2@consul:8500",
	} {
		_, err := NewClient(Config{HTTPAddr: addr, GRPCAddr: addr, Getenv: vars{}.get})
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: error %v", addr, err)
		}
	}
	for _, list := range []string{"http://root:65999,ss@consul:8500", "http://root:8500/65999,ss@consul:8500", "root:80,65999,ss@consul:8500", "x://root:80,65999@consul"} {
		for _, c := range []Config{{HTTPAddr: list}, {GRPCAddr: list}} {
			c.Getenv = vars{}.get
			_, err := NewClient(c)
			if err == nil || strings.Contains(err.Error(), "65999") {
				t.Errorf("%s: error %v", list, err)
			}
		}
	}
}

// requestRecorder is a server that remembers its last request.
type requestRecorder struct{ last *http.Request }

// ServeHTTP implements http.Handler.
func (h *requestRecorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.last = r
	w.Header().Set("X-Consul-Index", "7")
	_, _ = w.Write([]byte("[]")) // the client may have gone
}

// askMesh makes one request.
func askMesh(t *testing.T, c *Client) error {
	t.Helper()
	_, err := c.query(t.Context(), query{queryType: meshType}, 0, time.Minute)
	return err
}

func TestTheEnvironmentReachesConsul(t *testing.T) {
	h := &requestRecorder{}
	server := httptest.NewServer(h)
	defer server.Close()
	c := newTestClient(t, Config{Getenv: vars{
		"CONSUL_HTTP_ADDR":  server.URL + "/prefix",
		"CONSUL_HTTP_TOKEN": "own-token",
		"CONSUL_HTTP_AUTH":  "user:pass:word",
		"CONSUL_NAMESPACE":  "team",
		"CONSUL_PARTITION":  "part",
	}.get})
	if err := askMesh(t, c); err != nil {
		t.Fatal(err)
	}
	if got := h.last.URL.Path; got != "/prefix/v1/config/mesh" {
		t.Errorf("path %q", got)
	}
	if got := h.last.Header.Get("X-Consul-Token"); got != "own-token" {
		t.Errorf("token %q", got)
	}
	if user, password, _ := h.last.BasicAuth(); user != "user" || password != "pass:word" {
		t.Errorf("user %q, password %q", user, password)
	}
	if q := h.last.URL.Query(); q.Get("ns") != "team" || q.Get("partition") != "part" {
		t.Errorf("parameters %v", q)
	}
}

func TestAUnixSocketIsReached(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "consul.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	h := &requestRecorder{}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: h}} //nolint:gosec // a test's
	server.Start()
	defer server.Close()
	c := newTestClient(t, Config{HTTPAddr: "unix://" + socket})
	if err := askMesh(t, c); err != nil {
		t.Fatal(err)
	}
	if h.last.Host != "localhost" {
		t.Errorf("host %q", h.last.Host)
	}
}

// secure is a server with TLS that asks for a client certificate, and the files
// that reach it.
func newTLSServer(t *testing.T) (addr string, ca, cert, key string, h *requestRecorder) {
	t.Helper()
	h = &requestRecorder{}
	server := httptest.NewUnstartedServer(h)
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert} //nolint:gosec // a test's
	server.EnableHTTP2 = true                                      // as Consul does
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	private, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	ca, key = filepath.Join(t.TempDir(), "ca.pem"), filepath.Join(t.TempDir(), "key.pem")
	writePEM(t, ca, "CERTIFICATE", server.Certificate().Raw)
	writePEM(t, key, "PRIVATE KEY", private)
	return strings.TrimPrefix(server.URL, "https://"), ca, ca, key, h
}

func writePEM(t *testing.T, file, blockType string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// newCAFile writes the certificate of an unknown authority.
func newCAFile(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "other.pem")
	writePEM(t, file, "CERTIFICATE", der)
	return file
}

func TestTLSIsThatOfConsulsCLI(t *testing.T) {
	addr, ca, cert, key, h := newTLSServer(t)
	client := vars{"CONSUL_CLIENT_CERT": cert, "CONSUL_CLIENT_KEY": key}
	for name, test := range map[string]struct {
		addr string
		env  vars
		want string // in the error; empty: none
	}{
		"https":                {addr: "https://" + addr, env: vars{"CONSUL_CACERT": ca}},
		"ssl variable":         {addr: addr, env: vars{"CONSUL_CACERT": ca, "CONSUL_HTTP_SSL": "true"}},
		"ca path":              {addr: "https://" + addr, env: vars{"CONSUL_CAPATH": filepath.Dir(ca)}},
		"server name":          {addr: "https://" + addr, env: vars{"CONSUL_CACERT": ca, "CONSUL_TLS_SERVER_NAME": "example.com"}},
		"another server name":  {addr: "https://" + addr, env: vars{"CONSUL_CACERT": ca, "CONSUL_TLS_SERVER_NAME": "consul"}, want: "consul"},
		"unknown authority":    {addr: "https://" + addr, want: "unknown authority"},
		"no verification":      {addr: "https://" + addr, env: vars{"CONSUL_HTTP_SSL_VERIFY": "false"}},
		"plaintext to the TLS": {addr: "http://" + addr, env: vars{"CONSUL_CACERT": ca}, want: "400"},
	} {
		t.Run(name, func(t *testing.T) {
			env := vars{}
			for _, v := range []vars{client, test.env} {
				maps.Copy(env, v)
			}
			err := queryOverTLS(t, test.addr, env)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
	if h.last.Proto != "HTTP/2.0" {
		t.Errorf("TLS carries %s; every blocking query would need a connection of its own", h.last.Proto)
	}
	if err := queryOverTLS(t, "https://"+addr, vars{"CONSUL_CACERT": ca}); err == nil {
		t.Error("no client certificate was asked for")
	}
}

func queryOverTLS(t *testing.T, addr string, env vars) error {
	t.Helper()
	c, err := NewClient(Config{HTTPAddr: addr, Getenv: env.get})
	if err != nil {
		return err
	}
	defer c.watchHTTP.CloseIdleConnections()
	return askMesh(t, c)
}

func TestARotatedTokenCountsAtOnce(t *testing.T) {
	h := &requestRecorder{}
	server := httptest.NewServer(h)
	defer server.Close()
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	c := newTestClient(t, Config{HTTPAddr: server.URL, Getenv: vars{
		"CONSUL_HTTP_TOKEN_FILE": file, "CONSUL_HTTP_TOKEN": "from the environment",
	}.get})
	for _, step := range []struct{ written, want string }{
		{"first\n", "first"}, {" second ", "second"}, {"", "second"}, {"third", "third"},
	} {
		write(step.written)
		if err := askMesh(t, c); err != nil {
			t.Fatal(err)
		}
		if got := h.last.Header.Get("X-Consul-Token"); got != step.want {
			t.Errorf("the file has %q: sent %q, want %q", step.written, got, step.want)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := askMesh(t, c); err != nil {
		t.Fatal(err)
	}
	if got := h.last.Header.Get("X-Consul-Token"); got != "third" {
		t.Errorf("without the file: sent %q, want the last one", got)
	}
}

func TestAnEmptyTokenFileLeavesTheTokenOfTheEnvironment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := newTestClient(t, Config{Getenv: vars{"CONSUL_HTTP_TOKEN_FILE": file, "CONSUL_HTTP_TOKEN": "own"}.get})
	if got, _ := c.tokens.current(t.Context()); got != "own" {
		t.Errorf("token %q", string(got))
	}
}

func TestWhereConsulsGRPCPortIs(t *testing.T) {
	_, ca, _, _, _ := newTLSServer(t)
	for _, test := range []struct {
		flag   string
		env    vars
		target string
		tls    bool
	}{
		{},
		{flag: "127.0.0.1:8502", target: "dns:///127.0.0.1:8502"},
		{flag: "http://consul:8502", target: "dns:///consul:8502"},
		{flag: "https://consul:8503", target: "dns:///consul:8503", tls: true},
		{flag: "unix:///run/grpc.sock", target: "unix:/run/grpc.sock"},
		{env: vars{"CONSUL_GRPC_ADDR": "https://[::1]:8503"}, target: "dns:///[::1]:8503", tls: true},
		{flag: "consul:1", env: vars{"CONSUL_GRPC_ADDR": "other:2"}, target: "dns:///consul:1"},
		{flag: "consul:8502", env: vars{"CONSUL_GRPC_CACERT": ca}, target: "dns:///consul:8502"},
	} {
		got := newTestClient(t, Config{GRPCAddr: test.flag, Getenv: test.env.get}).targets.current().grpc
		if got.name != test.target || (got.tls != nil) != test.tls {
			t.Errorf("%q with %v: %+v, want target %q and TLS %v", test.flag, test.env, got, test.target, test.tls)
		}
	}
}

func TestTheGRPCPortHasAuthoritiesOfItsOwn(t *testing.T) {
	addr, ca, cert, key, _ := newTLSServer(t)
	other := newCAFile(t)
	for _, test := range []struct {
		env  vars
		good bool
	}{
		{vars{"CONSUL_CACERT": ca}, true},
		{vars{"CONSUL_CACERT": other, "CONSUL_GRPC_CACERT": ca}, true},
		{vars{"CONSUL_CACERT": ca, "CONSUL_GRPC_CACERT": other}, false},
		{vars{"CONSUL_GRPC_CACERT": ca, "CONSUL_TLS_SERVER_NAME": "consul"}, false},
		{vars{}, false},
	} {
		test.env["CONSUL_CLIENT_CERT"], test.env["CONSUL_CLIENT_KEY"] = cert, key
		grpc := newTestClient(t, Config{GRPCAddr: "https://" + addr, Getenv: test.env.get}).targets.current().grpc
		err := handshake(t, addr, grpc.tls())
		if (err == nil) != test.good {
			t.Errorf("%v: %v", test.env, err)
		}
	}
}

func handshake(t *testing.T, addr string, config *tls.Config) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

func TestATokenFileThatNeverEndsIsNotRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newTestClient(t, Config{Getenv: vars{"CONSUL_HTTP_TOKEN_FILE": file}.get})
	if err := errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got, _ := c.tokens.current(t.Context()); got != "first" {
		t.Errorf("token %q, want the last valid one", string(got))
	}
}

func TestAnAddressWithoutAPortIsAWarning(t *testing.T) {
	for address, warns := range map[string]bool{
		"localhost": true, "http://consul.example.com": true, "localhost:8500": false, "https://consul.example.com": false, "unix:///run/consul": false,
	} {
		var log attrRecorder
		if _, err := NewClient(Config{HTTPAddr: address, Getenv: vars{}.get, Logger: slog.New(&log)}); err != nil {
			t.Fatal(err)
		}
		lines := log.take()
		if got := len(lines) == 1 && strings.HasPrefix(lines[0], "WARN consul's address has no port"); got != warns {
			t.Errorf("%s: the log is %q, want a warning: %v", address, lines, warns)
		}
	}
}
