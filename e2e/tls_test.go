//go:build e2e

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestTLSOnTheXDSPort has Usher on its own host, where Envoys reach it over TLS
// with Consul's own bootstrap. Its certificate is replaced while they are
// connected: new connections use the new one, and open ones go on. A broken pair
// changes nothing but the log.
func TestTLSOnTheXDSPort(t *testing.T) {
	t.Parallel()
	for _, story := range []struct {
		consul string
		files  pairFiles
	}{
		{lab.ConsulNew, &writtenFiles{}},
		{lab.ConsulOld, &mountedFiles{}},
	} {
		t.Run(fmt.Sprintf("consul %s, %s", story.consul, story.files), func(t *testing.T) {
			t.Parallel()
			s := startTLSLab(t, story.consul, story.files)
			s.WantClientAddress(t, s.Envoy)
			s.wantTLSOnly(t)
			s.wantReplacedPairUsed(t)
			s.wantBrokenPairIgnored(t)
			s.wantReplacedPairUsed(t)
		})
	}
}

// tlsLab is the lab with Usher on the control host, where the gateway's Envoy
// reaches it over TLS.
type tlsLab struct {
	*lab.Lab
	Usher *lab.Usher
	Envoy *lab.Envoy

	ca       *lab.CertificateAuthority
	files    pairFiles
	cert     string // of the pair in the files now
	address  string
	replaced int // how often the pair was
}

func startTLSLab(t *testing.T, consulVersion string, files pairFiles) *tlsLab {
	t.Helper()
	s := &tlsLab{Lab: lab.Start(t, consulVersion, lab.EnvoyNew, false), ca: lab.NewCertificateAuthority(t, "Usher CA"), files: files}
	s.address = s.Control.Addr(18000)
	s.SetMode(t, "strict")
	s.HAProxy.SetHeader(t, lab.SendV2)
	var key string
	s.cert, key = s.newPair(t)
	certFile, keyFile := files.create(t, s.cert, key)
	s.Usher = lab.StartUsher(t, lab.UsherOptions{
		Host: s.Control, Consul: s.Consul, XDSAddr: s.address,
		Args: []string{"--tls-cert", certFile, "--tls-key", keyFile},
	})
	s.Envoy = lab.StartGateway(t, lab.GatewayOptions{
		Host: s.Gateway, Consul: s.Consul, Envoy: lab.EnvoyNew,
		GRPCAddr: "https://" + s.address,
		Args:     []string{"-grpc-ca-file", lab.WriteFile(t, testprocess.NewDir(t), "ca.pem", s.ca.PEM())},
	})
	s.Envoy.WaitListener(t, 8080)
	return s
}

// newPair issues a certificate and its key, in PEM.
func (s *tlsLab) newPair(t *testing.T) (cert, key string) {
	t.Helper()
	certFile, keyFile := s.ca.Issue(t, testprocess.NewDir(t), "usher.example.com", s.Control.IP)
	return testprocess.ReadFile(t, certFile), testprocess.ReadFile(t, keyFile)
}

// wantTLSOnly wants no stream for who speaks plain text, or trusts another
// authority.
func (s *tlsLab) wantTLSOnly(t *testing.T) {
	t.Helper()
	for what, creds := range map[string]credentials.TransportCredentials{
		"plain text":        insecure.NewCredentials(),
		"another authority": credentials.NewClientTLSFromCert(lab.NewCertificateAuthority(t, "Another CA").Pool(), "usher.example.com"),
	} {
		client := discoveryv3.NewAggregatedDiscoveryServiceClient(lab.XDSPort{From: s.Gateway, Address: s.address, TLS: creds}.Dial(t))
		_, err := client.DeltaAggregatedResources(t.Context())
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v, want no connection", what, err)
		}
	}
	for _, reason := range []string{"the caller speaks plain text, and this port has TLS", "the caller does not accept --tls-cert"} {
		line := regexp.MustCompile(`msg="TLS handshake failed" port=xds address=` + regexp.QuoteMeta(s.Gateway.IP.String()) + `:\d+ count=\d+ error="` + reason)
		testprocess.Eventually(t, "usher logs that "+reason, testprocess.ChangeDeadline, func() error {
			if !line.MatchString(s.Usher.Output(t)) {
				return errors.New("not yet")
			}
			return nil
		})
	}
	if n := s.Usher.MetricSum(t, "usher_tls_handshake_failures_total"); n < 2 {
		t.Errorf("usher_tls_handshake_failures_total is %v, want 2 or more", n)
	}
}

// wantReplacedPairUsed puts a new pair into the files. The Envoy keeps its
// stream, and gets the next change over it.
func (s *tlsLab) wantReplacedPairUsed(t *testing.T) {
	t.Helper()
	before := s.Envoy.XDSStreams(t)
	cert, key := s.newPair(t)
	s.files.replace(t, cert, key)
	s.cert = cert
	s.replaced++
	s.waitLog(t, "TLS certificate replaced", s.replaced)
	s.wantPairServed(t)

	s.SetMode(t, "off")
	s.WantBadRequest(t)
	s.SetMode(t, "strict")
	s.WantClientAddress(t, s.Envoy)
	if now := s.Envoy.XDSStreams(t); now != before || now.Open != 1 {
		t.Errorf("the Envoy's streams: %+v, before the certificate was replaced: %+v", now, before)
	}
}

// wantBrokenPairIgnored puts a certificate without its key into the files, and
// then something that is no certificate. Each is logged once.
func (s *tlsLab) wantBrokenPairIgnored(t *testing.T) {
	t.Helper()
	const line = "cannot use the new TLS certificate; the old one stays"
	cert, _ := s.newPair(t)
	_, key := s.newPair(t)
	s.files.replace(t, cert, key)
	s.waitLog(t, line, 1)
	s.wantPairServed(t)
	s.files.replace(t, "no certificate\n", key)
	s.waitLog(t, line, 2)
	s.wantPairServed(t)
	if errors := s.Usher.Errors(t); len(errors) != 2 {
		t.Errorf("the log has %d errors, want one for each broken pair: %q", len(errors), errors)
	}
	for _, line := range s.Usher.Errors(t) {
		t.Log(line)
	}
}

func (s *tlsLab) waitLog(t *testing.T, text string, times int) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("usher logs %q %d times", text, times), testprocess.ChangeDeadline, func() error {
		if n := strings.Count(s.Usher.Output(t), text); n < times {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
}

// wantPairServed wants a new connection to see the pair of the files, and to
// be served.
func (s *tlsLab) wantPairServed(t *testing.T) {
	t.Helper()
	var served *x509.Certificate
	config := &tls.Config{
		RootCAs: s.ca.Pool(), ServerName: "usher.example.com",
		VerifyConnection: func(state tls.ConnectionState) error {
			served = state.PeerCertificates[0]
			return nil
		},
	}
	e := lab.ConnectFakeEnvoy(t, lab.XDSPort{From: s.Gateway, Address: s.address, TLS: credentials.NewTLS(config)}.Dial(t), fakeenvoy.Delta, "")
	lab.FetchPrivateKey(t, e)
	e.Disconnect()
	if lab.EncodePEM("CERTIFICATE", served.Raw) != s.cert {
		t.Errorf("a new connection sees the certificate %v, want the latest good one", served.SerialNumber)
	}
}

// pairFiles are a certificate and its key in files, replaced in one of the ways
// that people have.
type pairFiles interface {
	create(t *testing.T, cert, key string) (certFile, keyFile string)
	replace(t *testing.T, cert, key string)
	fmt.Stringer
}

// writtenFiles are written in place, one after the other.
type writtenFiles struct{ dir string }

func (*writtenFiles) String() string { return "files that are written in place" }

func (f *writtenFiles) create(t *testing.T, cert, key string) (certFile, keyFile string) {
	t.Helper()
	f.dir = testprocess.NewDir(t)
	return lab.WriteFile(t, f.dir, "tls.crt", cert), lab.WriteFile(t, f.dir, "tls.key", key)
}

func (f *writtenFiles) replace(t *testing.T, cert, key string) {
	t.Helper()
	lab.WriteFile(t, f.dir, "tls.crt", cert)
	lab.WriteFile(t, f.dir, "tls.key", key)
}

// mountedFiles are those of a Kubernetes secret: links through a link that is
// replaced.
type mountedFiles struct {
	dir string
	n   int
}

func (*mountedFiles) String() string { return "files of a mounted secret" }

func (f *mountedFiles) create(t *testing.T, cert, key string) (certFile, keyFile string) {
	t.Helper()
	f.dir = testprocess.NewDir(t)
	f.replace(t, cert, key)
	for _, name := range []string{"tls.crt", "tls.key"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(f.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(f.dir, "tls.crt"), filepath.Join(f.dir, "tls.key")
}

func (f *mountedFiles) replace(t *testing.T, cert, key string) {
	t.Helper()
	f.n++
	version := fmt.Sprintf("..%d", f.n)
	dir, next := filepath.Join(f.dir, version), filepath.Join(f.dir, "..data_tmp")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lab.WriteFile(t, dir, "tls.crt", cert)
	lab.WriteFile(t, dir, "tls.key", key)
	if err := errors.Join(os.Symlink(version, next), os.Rename(next, filepath.Join(f.dir, "..data"))); err != nil {
		t.Fatal(err)
	}
}
