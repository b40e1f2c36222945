//go:build e2e

package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/hashicorp/consul/api"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestChangesThatBlockingQueriesMiss is about three things that blocking queries
// do not report: Usher's token may read a service again, a snapshot was
// restored, Consul does not answer at all. Usher notices each within seconds,
// over HTTP and HTTPS, also when Consul's certificate authority has changed
// meanwhile.
func TestChangesThatBlockingQueriesMiss(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		version string
		secure  bool
	}{{lab.ConsulNew, false}, {lab.ConsulNew, true}, {lab.ConsulOld, true}} {
		t.Run(fmt.Sprintf("consul %s, secure %v", c.version, c.secure), func(t *testing.T) {
			t.Parallel()
			s := startMissedChanges(t, lab.ConsulOptions{Version: c.version, Secure: c.secure, ACLs: true})
			s.restoreRight(t)
			s.restore(t)
			if c.secure {
				s.rotate(t)
				s.wantNoticed(t, func() { s.Consul.Signal(t, syscall.SIGSTOP) }, func() { s.Consul.Signal(t, syscall.SIGCONT) })
			} else {
				s.wantNoticed(t, func() { s.Switch.RunIP(t, "link set control down") }, func() { s.Switch.RunIP(t, "link set control up") })
			}
			registerNumbered(t, s.Lab, 0, 23000)
			s.envoy.wait(t, map[string]int{"svc-0000": 23000, "svc-0001": 20001}, testprocess.ChangeDeadline)
		})
	}
}

// missedDeadline is how late Usher may notice what no blocking query reports.
const missedDeadline = 15 * time.Second

// missedChanges is a gateway with two services without processes, and a fake Envoy.
type missedChanges struct {
	*lab.Lab
	Usher *lab.Usher
	envoy *shownPorts
	files string // the directory with Usher's files for TLS
	token string
}

// startMissedChanges has Usher's token read but one of the services.
func startMissedChanges(t *testing.T, o lab.ConsulOptions) *missedChanges {
	t.Helper()
	s := &missedChanges{Lab: &lab.Lab{Network: lab.NewNetwork(t)}, files: testprocess.NewDir(t)}
	o.Host = s.Control
	s.Consul = lab.StartConsul(t, o)
	s.RegisterCatalog(t, s.Consul)
	registerMany(t, s.Lab, []int{20000, 20001})
	s.token = s.Consul.NewToken(t, "usher", oneServiceRules)
	env := []string(nil)
	if o.Secure {
		lab.WriteFile(t, s.files, "ca.pem", s.Consul.Security.CA.PEM())
		cert, key := s.Consul.Security.CA.Issue(t, s.files, "usher")
		env = []string{"CONSUL_CACERT=" + filepath.Join(s.files, "ca.pem"), "CONSUL_CLIENT_CERT=" + cert, "CONSUL_CLIENT_KEY=" + key}
	}
	s.Usher = lab.LaunchUsher(t, lab.UsherOptions{
		Host: s.Gateway, Consul: s.Consul, Token: s.token,
		Args: []string{"--consul-http-addr", s.Consul.HTTPAddr}, Env: env,
	})
	s.Usher.WaitReady(t)
	s.envoy = &shownPorts{
		envoy: lab.ConnectFakeEnvoy(t, lab.XDSPort{From: s.Gateway}.Dial(t), fakeenvoy.Delta, s.Consul.NewToken(t, "gateway", gatewayRules)),
		ports: map[string]int{},
	}
	for _, typeURL := range []string{resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType} {
		s.envoy.envoy.Subscribe(typeURL, "*")
	}
	return s
}

// oneServiceRules let Usher's token serve the gateway and read one service of it.
const oneServiceRules = `
service "ingress-gateway" { policy = "write" }
service_prefix "static-server" { policy = "read" }
service_prefix "svc-0000" { policy = "read" }
node_prefix "" { policy = "read" }
`

// restoreRight lets Usher's token read the other service, too.
func (s *missedChanges) restoreRight(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, "usher has read what its token may read", testprocess.StartDeadline, func() error {
		for _, series := range []string{`{kind="gateway-services",outcome="ok"}`, `{kind="ingress-gateway",outcome="ok"}`} {
			if !strings.Contains(s.Usher.Metrics(t), "usher_consul_queries_total"+series) {
				return fmt.Errorf("no %s", series)
			}
		}
		return nil
	})
	self, _, err := s.Consul.Client.ACL().TokenReadSelf(&api.QueryOptions{Token: s.token})
	if err != nil {
		t.Fatal(err)
	}
	policy, _, err := s.Consul.Client.ACL().PolicyRead(self.Policies[0].ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	policy.Rules = testprocess.ReadFile(t, "../docs/usher-policy.hcl")
	if _, _, err := s.Consul.Client.ACL().PolicyUpdate(policy, nil); err != nil {
		t.Fatal(err)
	}
	s.envoy.wait(t, map[string]int{"svc-0000": 20000, "svc-0001": 20001}, missedDeadline)
}

// restore brings back an instance and a service that were changed and taken away
// after the snapshot.
func (s *missedChanges) restore(t *testing.T) {
	t.Helper()
	snapshot, _, err := s.Consul.Client.Snapshot().Save(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Close()
	content, err := io.ReadAll(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	registerMany(t, s.Lab, []int{22000})
	s.envoy.wait(t, map[string]int{"svc-0000": 22000}, testprocess.ChangeDeadline)
	if err := s.Consul.Client.Snapshot().Restore(nil, strings.NewReader(string(content))); err != nil {
		t.Fatal(err)
	}
	s.envoy.wait(t, map[string]int{"svc-0000": 20000, "svc-0001": 20001}, missedDeadline)
}

// rotate gives Consul's HTTPS port a certificate of a new authority, and makes it
// want a certificate of that from clients; and Usher the files for it.
func (s *missedChanges) rotate(t *testing.T) {
	t.Helper()
	secure := s.Consul.Security
	secure.CA = lab.NewCertificateAuthority(t, "Next lab CA")
	lab.WriteFile(t, filepath.Dir(secure.CAFile), filepath.Base(secure.CAFile), secure.CA.PEM())
	secure.CA.Issue(t, s.Consul.TLSDir, "server.dc1.consul", s.Control.IP)
	config := strings.Replace(testprocess.ReadFile(t, s.Consul.ConfigFile), `"tls": {`, `"tls": { "https": { "verify_incoming": true },`, 1)
	lab.WriteFile(t, filepath.Dir(s.Consul.ConfigFile), filepath.Base(s.Consul.ConfigFile), config)
	s.Consul.Signal(t, syscall.SIGHUP)

	lab.WriteFile(t, s.files, "ca.pem", secure.CA.PEM())
	cert, key := secure.CA.Issue(t, s.files, "usher")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	testprocess.Eventually(t, "Consul wants clients of the new authority", testprocess.StartDeadline, func() error {
		secure.ClientCertificates = nil
		if _, err := s.Consul.NewClient(t, lab.ManagementToken).Status().Leader(); err == nil {
			return errors.New("it takes one without a certificate")
		}
		secure.ClientCertificates = []tls.Certificate{pair}
		s.Consul.Client = s.Consul.NewClient(t, lab.ManagementToken)
		_, err := s.Consul.Client.Status().Leader()
		return err
	})
}

// wantNoticed wants status and metric to say within ten seconds that Consul does
// not answer, and soon after it does again that it does.
func (s *missedChanges) wantNoticed(t *testing.T, away, back func()) {
	t.Helper()
	away()
	waitSilence(t, s.Usher)
	back()
	start := time.Now()
	waitAnswers(t, s.Usher)
	t.Logf("cleared %v after Consul was back", time.Since(start).Round(time.Millisecond))
}

const (
	silenceDeadline = 10 * time.Second
	answersDeadline = 10 * time.Second
)

// waitSilence waits until Usher says that Consul does not answer.
func waitSilence(t *testing.T, u *lab.Usher) {
	t.Helper()
	testprocess.Eventually(t, "usher says that Consul does not answer", silenceDeadline, func() error {
		text, err := u.Admin("/readyz") // whether it is ready is another question
		if !strings.Contains(text+fmt.Sprint(err), "no answer within") {
			return errors.Join(fmt.Errorf("/readyz says %q", text), err)
		}
		if up := u.MetricSum(t, "usher_consul_up"); up != 0 {
			return fmt.Errorf("usher_consul_up is %v", up)
		}
		return nil
	})
}

// waitAnswers waits until Usher says that Consul answers.
func waitAnswers(t *testing.T, u *lab.Usher) {
	t.Helper()
	testprocess.Eventually(t, "usher says that Consul answers", answersDeadline, func() error {
		if up := u.MetricSum(t, "usher_consul_up"); up != 1 {
			return fmt.Errorf("usher_consul_up is %v", up)
		}
		text, err := u.Admin("/readyz")
		if err != nil || strings.Contains(text, "no answer") {
			return errors.Join(fmt.Errorf("/readyz says %q", text), err)
		}
		return nil
	})
}

// shownPorts is what a fake Envoy has been sent: the port of each service that
// has an instance.
type shownPorts struct {
	envoy *fakeenvoy.Envoy
	ports map[string]int
}

// wait waits until the services of the crowd have these ports.
func (s *shownPorts) wait(t *testing.T, want map[string]int, deadline time.Duration) {
	t.Helper()
	start := time.Now()
	for !maps.Equal(s.ports, want) {
		r := s.envoy.Next()
		s.envoy.Ack(r)
		s.take(t, r)
	}
	took := time.Since(start).Round(time.Millisecond)
	t.Logf("%v after %v", want, took)
	if took > deadline {
		t.Errorf("%v was there after %v, want at most %v", want, took, deadline)
	}
}

func (s *shownPorts) take(t *testing.T, r fakeenvoy.Response) {
	t.Helper()
	switch r.Type {
	case resource.EndpointType:
	case resource.ClusterType:
		for _, name := range r.Removed {
			delete(s.ports, strings.Split(name, ".")[0])
		}
		return
	default:
		return
	}
	for _, body := range r.Bodies {
		var a endpointv3.ClusterLoadAssignment
		if err := proto.Unmarshal(body, &a); err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(a.ClusterName, ".")
		if !strings.HasPrefix(name, "svc-") {
			continue
		}
		delete(s.ports, name)
		for _, l := range a.Endpoints {
			for _, e := range l.LbEndpoints {
				s.ports[name] = int(e.GetEndpoint().GetAddress().GetSocketAddress().GetPortValue())
			}
		}
	}
}
