package bootstrap_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/usherproxy/usher/internal/bootstrap"
	"github.com/usherproxy/usher/internal/testing/golden"
	"github.com/usherproxy/usher/internal/testing/messages"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cases are the bootstraps with a golden file testdata/<name>.json each.
func cases(t *testing.T) map[string]bootstrap.Options {
	ca := readFile(t, "testdata/ca.pem")
	return map[string]bootstrap.Options{
		"defaults": {Gateway: "ingress-gateway", XDSAddr: "127.0.0.1:18000"},
		"everything": {
			Gateway: "ingress-gateway", ServiceID: "ingress-gateway-1", NodeName: "node-1",
			Namespace: "team", Partition: "east",
			XDSAddr: "https://usher.example.com:18000", CACert: ca, ServerName: "usher.internal",
			Token: "c0ffee00-0000-0000-0000-000000000000", AdminAddr: "localhost:19001",
			ReadyAddr: "192.0.2.1:8443", SotW: true, Datacenter: "dc1", OmitDeprecatedTags: true, EagerStats: true,
		},
		"https-dns":   {Gateway: "ingress-gateway", XDSAddr: "https://usher.example.com:18000", CACert: ca},
		"https-ip":    {Gateway: "ingress-gateway", XDSAddr: "https://[2001:db8::1]:18000", CACert: ca},
		"ipv6":        {Gateway: "ingress-gateway", XDSAddr: "[2001:db8::1]:18000", AdminAddr: "[::1]:19001", ReadyAddr: "[2001:db8::2]:8443"},
		"plain-dns":   {Gateway: "ingress-gateway", XDSAddr: "http://localhost:18000"},
		"unix-socket": {Gateway: "ingress-gateway", XDSAddr: "unix:///run/usher/xds.sock", AdminAddr: "127.0.0.1:0"},
	}
}

func TestBootstrapsMatchTheirGoldenFiles(t *testing.T) {
	all := cases(t)
	for name, o := range all {
		t.Run(name, func(t *testing.T) {
			got := write(t, o)
			file := filepath.Join("testdata", name+".json")
			if golden.Updating() {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(readFile(t, file), got); diff != "" {
				t.Errorf("bootstrap differs from %s (-want +got); -update rewrites it:\n%s", file, diff)
			}
		})
	}
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if _, ok := all[strings.TrimSuffix(filepath.Base(file), ".json")]; !ok {
			t.Errorf("%s belongs to no case; remove it", file)
		}
	}
}

func TestEqualOptionsGiveEqualBytes(t *testing.T) {
	for name, o := range cases(t) {
		first := write(t, o)
		for range 10 {
			if diff := cmp.Diff(first, write(t, o)); diff != "" {
				t.Fatalf("%s: two bootstraps differ:\n%s", name, diff)
			}
		}
	}
}

func TestABadOptionIsOneClearError(t *testing.T) {
	var all []string
	const gw = "ingress-gateway"
	ca := readFile(t, "testdata/ca.pem")
	for name, tc := range map[string]struct {
		o    bootstrap.Options
		want string
	}{
		"a token with a line end": {
			bootstrap.Options{Gateway: gw, XDSAddr: "usher:18000", Token: "c0ffee00\n"}, "the ACL token has a character that no token has",
		},
		"no gateway":      {bootstrap.Options{XDSAddr: "127.0.0.1:18000"}, "the gateway has no name"},
		"no address":      {bootstrap.Options{Gateway: gw}, `xDS address "": missing port in address; use host:port`},
		"no port":         {bootstrap.Options{Gateway: gw, XDSAddr: "usher"}, `xDS address "usher": missing port in address`},
		"port 0":          {bootstrap.Options{Gateway: gw, XDSAddr: "usher:0"}, "the port is 0"},
		"port too large":  {bootstrap.Options{Gateway: gw, XDSAddr: "usher:65536"}, `"65536" is not a port`},
		"bare IPv6":       {bootstrap.Options{Gateway: gw, XDSAddr: "::1:18000"}, "too many colons"},
		"no host":         {bootstrap.Options{Gateway: gw, XDSAddr: ":18000"}, "the host is missing"},
		"path in address": {bootstrap.Options{Gateway: gw, XDSAddr: "http://usher:18000/x"}, `"18000/x" is not a port`},
		"scheme":          {bootstrap.Options{Gateway: gw, XDSAddr: "grpc://usher:18000"}, `scheme "grpc" is unknown`},
		"no socket path":  {bootstrap.Options{Gateway: gw, XDSAddr: "unix://"}, "the path is missing"},
		"https without CA": {
			bootstrap.Options{Gateway: gw, XDSAddr: "https://usher:18000"},
			"CA certificate for https://usher:18000: there is none in PEM",
		},
		"CA without https": {bootstrap.Options{Gateway: gw, XDSAddr: "usher:18000", CACert: ca}, "use https://host:port"},
		"name without https": {
			bootstrap.Options{Gateway: gw, XDSAddr: "unix:///x", ServerName: "usher"}, "use https://host:port",
		},
		"a key as CA": {
			bootstrap.Options{Gateway: gw, XDSAddr: "https://usher:18000", CACert: ca + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"},
			"PEM block 2 is a PRIVATE KEY",
		},
		"a broken CA": {
			bootstrap.Options{Gateway: gw, XDSAddr: "https://usher:18000", CACert: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
			"PEM block 1: ",
		},
		"a server name that is too long": {
			bootstrap.Options{Gateway: gw, XDSAddr: "https://usher:18000", CACert: ca, ServerName: strings.Repeat("x", 256)}, "invalid UpstreamTlsContext.Sni",
		},
		"admin by name": {
			bootstrap.Options{Gateway: gw, XDSAddr: "usher:18000", AdminAddr: "gateway-1:19000"},
			`admin address "gateway-1:19000": "gateway-1" is not an IP address`,
		},
		"ready by name": {bootstrap.Options{Gateway: gw, XDSAddr: "usher:18000", ReadyAddr: "x:1"}, `ready address "x:1"`},
		"ready without admin port": {
			bootstrap.Options{Gateway: gw, XDSAddr: "usher:18000", ReadyAddr: "127.0.0.1:8443", AdminAddr: "127.0.0.1:0"},
			"needs an admin address with a port",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := bootstrap.Write(&out, tc.o)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got error %v, want one with %q", err, tc.want)
			}
			all = append(all, err.Error())
			if strings.Contains(err.Error(), "\n") || out.Len() > 0 {
				t.Errorf("want one line and no output; error %q, output %q", err, out.String())
			}
		})
	}
	for name, tc := range badDataplaneOptions(ca) {
		t.Run("for consul-dataplane, "+name, func(t *testing.T) {
			text, err := bootstrap.DataplaneTemplate(tc.o)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got error %v, want one with %q", err, tc.want)
			}
			all = append(all, err.Error())
			if strings.Contains(err.Error(), "\n") || text != "" {
				t.Errorf("want one line and no template; error %q, template %q", err, text)
			}
		})
	}
	messages.Check(t, all, "fmt.Errorf", "errors.New", "bad")
}

func TestABadTokenIsNotPrinted(t *testing.T) {
	const secret = "c0ffee00-1111"
	o := bootstrap.Options{Gateway: "gw", XDSAddr: "127.0.0.1:18000", Token: secret + "\n"}
	err := bootstrap.Write(&bytes.Buffer{}, o)
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("got error %v, want one without the token", err)
	}
	if text := fmt.Sprintf("%v %+v", o, o); strings.Contains(text, secret) {
		t.Errorf("the options print the token: %s", text)
	}
}

func write(t *testing.T, o bootstrap.Options) string {
	t.Helper()
	var out bytes.Buffer
	if err := bootstrap.Write(&out, o); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// readFile gives a file of testdata. With -update, a missing ca.pem is made.
func readFile(t *testing.T, name string) string {
	t.Helper()
	if _, err := os.Stat(name); golden.Updating() && os.IsNotExist(err) && name == "testdata/ca.pem" {
		writeCA(t, name)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeCA(t *testing.T, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
}
