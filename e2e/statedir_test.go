//go:build e2e

package e2e

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// stateStory is a gateway whose Usher has a state directory.
type stateStory struct {
	*lab.Lab
	options lab.UsherOptions
	usher   *lab.Usher
	own     lab.BootstrapOptions
	running *lab.Envoy
	dir     string
}

// startStateStory starts a gateway, and waits until Usher has saved it. With a key, private keys are saved, and Consul has
// ACLs.
func startStateStory(t *testing.T, key string) *stateStory {
	t.Helper()
	s := &stateStory{Lab: lab.Start(t, lab.ConsulNew, lab.EnvoyNew, key != ""), dir: filepath.Join(testprocess.NewDir(t), "state")}
	registerDefinition(t, s.Consul, gatewayDefinition(s.Gateway))
	s.options = lab.UsherOptions{Host: s.Gateway, Consul: s.Consul, Args: []string{"--state-dir", s.dir, "--log-level", "debug"}}
	if key != "" {
		s.options.Env = []string{"USHER_STATE_KEY=" + key}
	}
	s.usher = lab.StartUsher(t, s.options)
	s.own = lab.BootstrapOptions{Host: s.Gateway, Envoy: lab.EnvoyNew, XDSAddr: s.usher.GRPCAddr}
	if token := s.Consul.NewTokenIfSecure(t, "envoy", `service "ingress-gateway" { policy = "write" }`); token != "" {
		s.own.Env = []string{"CONSUL_HTTP_TOKEN=" + token}
	}
	s.running = lab.StartBootstrapped(t, s.own)
	lab.WaitStatus(t, s.Request("/"), http.StatusOK)
	testprocess.Eventually(t, "the gateway and its Envoy are saved", testprocess.ChangeDeadline, func() error {
		if s.usher.MetricSum(t, "usher_state_saved_timestamp_seconds") == 0 {
			return errors.New("the gateway is not saved yet")
		}
		_, err := os.Stat(filepath.Join(s.dir, "authorizations.state"))
		return err
	})
	return s
}

// restartWithoutConsul kills Consul and Usher under load, and launches Usher. The Envoy that runs is sent nothing and loses no
// request.
func (s *stateStory) restartWithoutConsul(t *testing.T, launch func(*testing.T, lab.UsherOptions) *lab.Usher) {
	t.Helper()
	load := lab.StartLoad(t, s.Request("/"))
	load.WaitMore(t)
	s.Consul.Kill()
	s.usher.Kill()
	s.usher = launch(t, s.options)
	s.usher.WaitOutput(t, "envoy connected")
	s.usher.WaitOutput(t, "served with answers that were saved")
	load.WaitMore(t)
	if sent := s.usher.MetricSum(t, resourceBytes); sent != 0 {
		t.Errorf("an Envoy that runs was sent %v bytes of resources", sent)
	}
	load.WantNoFailures(t)
}

// withoutAuthorizations calls f while the state directory has the gateway, but no caller who may have it.
func (s *stateStory) withoutAuthorizations(t *testing.T, f func()) {
	t.Helper()
	path := filepath.Join(s.dir, "authorizations.state")
	aside := path + ".aside"
	if err := os.Rename(path, aside); err != nil {
		t.Fatal(err)
	}
	f()
	if err := os.Rename(aside, path); err != nil {
		t.Fatal(err)
	}
}

// waitRestored waits until the gateway is restored, and wants every place to say so.
func waitRestored(t *testing.T, u *lab.Usher) {
	t.Helper()
	testprocess.Eventually(t, "the gateway is restored", testprocess.ChangeDeadline, func() error {
		if u.MetricSum(t, "usher_state_restored_timestamp_seconds") == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	testprocess.Eventually(t, "/readyz says what is served", testprocess.ChangeDeadline, func() error {
		ready, err := u.Admin("/readyz")
		if err == nil && !strings.Contains(ready, "Usher uses what it saved at 20") {
			err = errors.New(ready)
		}
		return err
	})
	testprocess.Eventually(t, "/status says it, too", testprocess.ChangeDeadline, func() error {
		state, err := u.Admin("/status")
		if err == nil && !strings.Contains(state, `"restored":"20`) {
			err = errors.New(state)
		}
		return err
	})
}

// TestRestartWithoutConsul restarts Usher while Consul is away. A new Envoy with the token of the one before gets all of its
// configuration. An Usher that knows no Envoy which may have the configuration is not ready. A damaged file is not used.
func TestRestartWithoutConsul(t *testing.T) {
	t.Parallel()
	const key = "the secret of an operator, 0123456789"
	s := startStateStory(t, key)
	s.restartWithoutConsul(t, lab.StartUsher)
	waitRestored(t, s.usher)
	s.running.Kill()
	began := time.Now()
	fresh := lab.StartBootstrapped(t, s.own)
	lab.WaitStatus(t, s.Request("/"), http.StatusOK)
	t.Logf("a new Envoy answered %v after its start", time.Since(began).Round(time.Millisecond))
	for place, text := range map[string]string{"the log": s.usher.Output(t), "the metrics": s.usher.Metrics(t)} {
		if strings.Contains(text, "PRIVATE KEY") || strings.Contains(text, key) {
			t.Errorf("%s has a secret", place)
		}
	}

	s.usher.Kill()
	s.withoutAuthorizations(t, func() {
		s.usher = lab.LaunchUsher(t, s.options)
		s.usher.WantNotReady(t, "connection refused")
		s.usher.Kill()
	})
	files, err := filepath.Glob(filepath.Join(s.dir, "gateway-*.state"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %q, %v; want one", files, err)
	}
	content := []byte(testprocess.ReadFile(t, files[0]))
	if strings.Contains(string(content), "BEGIN") {
		t.Error("the file has a certificate or key that is not encrypted")
	}
	content[len(content)/2] ^= 1
	if err := os.WriteFile(files[0], content, 0o600); err != nil {
		t.Fatal(err)
	}
	s.usher = lab.LaunchUsher(t, s.options)
	s.usher.WaitOutput(t, "its checksum is wrong; Usher does not use it, and has renamed it to "+files[0]+".bad-")
	s.usher.WantNotReady(t, "connection refused")
	if err := fresh.Alive(); err != nil {
		t.Error(err)
	}
	lab.WaitStatus(t, s.Request("/"), http.StatusOK)
}

// TestRestartWithoutConsulOnAReadOnlyDisk is the same on a disk that has become read-only. Usher reads what is there.
func TestRestartWithoutConsulOnAReadOnlyDisk(t *testing.T) {
	t.Parallel()
	s := startStateStory(t, "the secret of an operator, 0123456789")
	s.options.ReadOnly = s.dir
	s.restartWithoutConsul(t, lab.StartUsher)
	waitRestored(t, s.usher)
	s.running.Kill()
	lab.StartBootstrapped(t, s.own)
	lab.WaitStatus(t, s.Request("/"), http.StatusOK)
}

// TestRestartWithoutConsulAndPrivateKeys is TestRestartWithoutConsul without a key: the Envoy that runs keeps everything. A
// new one gets no listener, so Usher is not ready.
func TestRestartWithoutConsulAndPrivateKeys(t *testing.T) {
	t.Parallel()
	s := startStateStory(t, "")
	s.restartWithoutConsul(t, lab.LaunchUsher)
	s.usher.WaitOutput(t, "there is none, because Consul has not answered since Usher started, and the state directory has no private keys")
	s.usher.WantNotReady(t, "connection refused")
	s.running.Kill()
	fresh := lab.StartBootstrapped(t, s.own)
	waitMetric(t, s.usher, `usher_held_back_listeners{gateway="ingress-gateway",port="8080"}`, "1")
	wantClosedPort(t, s.Lab, fresh)
}
