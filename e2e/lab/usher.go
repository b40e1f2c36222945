//go:build e2e

package lab

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// UsherOptions describe a `usher serve` in front of a Consul agent.
type UsherOptions struct {
	Host    *Host
	Consul  *Consul // nil where Args have --config-dir
	Token   string  // "" is the agent's management token where it is secure
	Config  string  // content of the file for --config; "" for none
	XDSAddr string  // 127.0.0.1:18000 when empty
	Args    []string
	Env     []string // besides what Consul and Token give
	Log     string   // path that replaces the log file
	Files   int      // limit of open files; 0 as the test
	Memory  int      // memory limit in bytes; 0 as the test
	// ReadOnly is a directory that Usher has on a file system that is read-only; "" for none.
	ReadOnly string
}

// Usher is a running `usher serve` that its host's Envoys reach on loopback,
// unless its options have another address.
type Usher struct {
	*testprocess.Process
	// GRPCAddr is for -grpc-addr and for --xds-addr of `usher bootstrap`.
	GRPCAddr string
	// ConfigFile is the path of the file with the options' Config.
	ConfigFile string

	HTTPClient *http.Client
}

// StartUsher starts Usher and waits until it is ready.
func StartUsher(t *testing.T, o UsherOptions) *Usher {
	t.Helper()
	u := LaunchUsher(t, o)
	u.WaitReady(t)
	return u
}

// LaunchUsher starts Usher and does not wait until it is ready.
func LaunchUsher(t *testing.T, o UsherOptions) *Usher {
	t.Helper()
	env := o.Env
	if o.Consul != nil {
		if o.Token == "" {
			o.Token = o.Consul.DefaultToken()
		}
		env = append(env, o.Consul.Env(o.Token)...)
	}
	if o.XDSAddr == "" {
		o.XDSAddr = "127.0.0.1:18000"
	}
	u := &Usher{GRPCAddr: o.XDSAddr, HTTPClient: o.Host.httpClient(t)}
	if !strings.Contains(o.XDSAddr, "://") {
		u.GRPCAddr = "http://" + o.XDSAddr
	}
	args := []string{"serve", "--xds-addr", o.XDSAddr, "--admin-addr", "127.0.0.1:18001"}
	if o.Config != "" {
		u.ConfigFile = WriteFile(t, testprocess.NewDir(t), "usher.hcl", o.Config)
		args = append(args, "--config", u.ConfigFile)
	}
	c := testprocess.Command{
		Name: "usher on " + o.Host.Name, Path: testprocess.Usher(t), Args: append(args, o.Args...),
		Env: env, Host: o.Host,
	}
	if o.Files > 0 {
		c.Args = append([]string{fmt.Sprintf("--nofile=%d:%d", o.Files, o.Files), c.Path}, c.Args...)
		c.Path = testprocess.Debian(t, "prlimit", "util-linux")
	}
	if o.Memory > 0 {
		c.Path, c.Args = inMemoryGroup(t, o.Memory, c.Path, c.Args)
	}
	if o.ReadOnly != "" {
		c.Args = append([]string{"--mount", "sh", "-c", `mount --bind -o ro "$0" "$0" && exec "$@"`, o.ReadOnly, c.Path}, c.Args...)
		c.Path = testprocess.Debian(t, "unshare", "util-linux")
	}
	if o.Log != "" {
		c.Args = append([]string{"-c", `exec "$@" 2>"$0"`, o.Log, c.Path}, c.Args...)
		c.Path = testprocess.Debian(t, "sh", "dash")
	}
	u.Process = testprocess.Start(t, c)
	return u
}

// WaitReady waits until /readyz is 200.
func (u *Usher) WaitReady(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, "usher is ready", testprocess.StartDeadline, func() error {
		_, err := u.Admin("/readyz")
		return err
	})
}

// Admin asks Usher's admin port; an answer other than 200 is an error with the
// answer's text.
func (u *Usher) Admin(path string) (string, error) {
	if err := u.Alive(); err != nil {
		return "", err
	}
	return get(u.HTTPClient, "http://127.0.0.1:18001"+path)
}

// Metrics returns the text of /metrics.
func (u *Usher) Metrics(t *testing.T) string {
	t.Helper()
	text, err := u.Admin("/metrics")
	if err != nil {
		t.Fatalf("usher's metrics: %v", err)
	}
	return text
}

// WaitStream waits until an Envoy is connected and has acknowledged its first
// responses.
func (u *Usher) WaitStream(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, "an Envoy comes back", testprocess.StartDeadline, func() error {
		if n := u.MetricSum(t, "usher_xds_acks_total"); n < 2 {
			return fmt.Errorf("%v answers acknowledged, want those of clusters and listeners", n)
		}
		return nil
	})
}

// MetricSum adds up the series of a metric.
func (u *Usher) MetricSum(t *testing.T, metric string) float64 {
	t.Helper()
	var total float64
	for _, series := range regexp.MustCompile(`(?m)^`+metric+`(?:\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(u.Metrics(t), -1) {
		value, err := strconv.ParseFloat(series[1], 64)
		if err != nil {
			t.Fatalf("%s: %v", metric, err)
		}
		total += value
	}
	return total
}

// Reported returns how many connections of a type Envoys have reported for a port of the lab's gateway, as Usher's metrics
// have it.
func Reported(t *testing.T, metrics string, port int, connection string) int {
	t.Helper()
	series := fmt.Sprintf("usher_reported_connections_total{gateway=\"ingress-gateway\",port=\"%d\",type=%q} ", port, connection)
	for line := range strings.Lines(metrics) {
		if value, ok := strings.CutPrefix(line, series); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// WantNotReady waits until /readyz is 503 with the reasons.
func (u *Usher) WantNotReady(t *testing.T, reasons ...string) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("usher is not ready because of %q", reasons), testprocess.ChangeDeadline, func() error {
		_, err := u.Admin("/readyz")
		if err == nil {
			return errors.New("it is ready")
		}
		for _, text := range append(reasons, http.StatusText(http.StatusServiceUnavailable)) {
			if !strings.Contains(err.Error(), text) {
				return err
			}
		}
		return nil
	})
}

// WaitProblem waits until Usher is ready, and /readyz names a problem with the text.
func (u *Usher) WaitProblem(t *testing.T, within time.Duration, text string) {
	t.Helper()
	u.waitProblem(t, within, text, true)
}

// WaitNoProblem waits until Usher is ready, and /readyz names no problem with the text any more.
func (u *Usher) WaitNoProblem(t *testing.T, within time.Duration, text string) {
	t.Helper()
	u.waitProblem(t, within, text, false)
}

func (u *Usher) waitProblem(t *testing.T, within time.Duration, text string, want bool) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("/readyz has %q: %t", text, want), within, func() error {
		got, err := u.Admin("/readyz")
		if err == nil && strings.Contains(got, text) != want {
			err = fmt.Errorf("/readyz says %q", got)
		}
		return err
	})
}

// WriteConfig writes the file of the options' Config again.
func (u *Usher) WriteConfig(t *testing.T, content string) {
	t.Helper()
	WriteFile(t, filepath.Dir(u.ConfigFile), filepath.Base(u.ConfigFile), content)
}

// WantReadyWithoutConsul waits until /readyz says why and since when Consul does not
// answer, and wants its status to be 200 all the time.
func (u *Usher) WantReadyWithoutConsul(t *testing.T, address string) string {
	t.Helper()
	var text string
	remark := regexp.MustCompile(`^ready\nconsul at ` + regexp.QuoteMeta(address) +
		`: .* \(since 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ\); Envoys keep the last valid configuration\n`)
	testprocess.Eventually(t, "usher says that Consul does not answer", testprocess.ChangeDeadline, func() error {
		var err error
		if text, err = u.Admin("/readyz"); err != nil {
			t.Fatalf("usher is not ready: %v", err)
		}
		if !remark.MatchString(text) {
			return fmt.Errorf("/readyz says %q", text)
		}
		return nil
	})
	return text
}
