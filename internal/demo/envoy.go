package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/usherproxy/usher/internal/bootstrap"
)

// gatewayName is the name of the lab's gateway.
const gatewayName = "ingress-gateway"

// envoy is the lab's gateway: an Envoy process.
type envoy struct {
	binary        string
	bootstrapFile string // its configuration
	adminFile     string // it writes the ip:port of its admin interface there
	logger        *slog.Logger
	accessLog     chan string // the lines of its access log; it waits until each is read
}

// newEnvoy writes the bootstrap of an Envoy that gets its configuration from xdsAddr.
func newEnvoy(binary, dir, xdsAddr string, logger *slog.Logger) (*envoy, error) {
	e := &envoy{
		binary: binary, bootstrapFile: filepath.Join(dir, "bootstrap.json"), adminFile: filepath.Join(dir, "admin-address"),
		logger: logger, accessLog: make(chan string),
	}
	var config bytes.Buffer
	err := bootstrap.Write(&config, bootstrap.Options{Gateway: gatewayName, XDSAddr: xdsAddr, AdminAddr: "127.0.0.1:0"})
	if err == nil {
		err = os.WriteFile(e.bootstrapFile, config.Bytes(), 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("bootstrap of the gateway: %w", err)
	}
	return e, nil
}

// run runs the process until ctx ends, and waits for its end. If it ends earlier, that is an error with the last
// line that it logged.
func (e *envoy) run(ctx context.Context) error {
	// Linux sends a parent-death signal when the thread that started the child ends (prctl(2), PR_SET_PDEATHSIG), so
	// that thread has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	last := "none"
	// One worker, so that one count stands for all workers; no shared memory, so that other Envoys on the machine do
	// not matter.
	cmd := exec.CommandContext(ctx, e.binary, "--config-path", e.bootstrapFile, "--admin-address-path", e.adminFile,
		"--concurrency", "1", "--disable-hot-restart", "--file-flush-interval-msec", "20", "--log-level", "warning")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = killWithParent()
	cmd.Stdout = &lineWriter{put: func(line string) {
		select {
		case e.accessLog <- line:
		case <-ctx.Done():
		}
	}}
	cmd.Stderr = &lineWriter{put: func(line string) {
		if line = strings.TrimSpace(line); line != "" {
			last = line
			e.logger.Debug("envoy log", "line", line)
		}
	}}
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil
	case cmd.Process == nil:
		return noEnvoy(err)
	}
	return fmt.Errorf("envoy exited unexpectedly (%v); its last log line: %s", cmd.ProcessState, last)
}

// noEnvoy says why no Envoy can be started, and what to do.
func noEnvoy(err error) error {
	return fmt.Errorf("the demo needs an Envoy binary: %w; set its path with --envoy", err)
}

// lineWriter calls put with each complete line that is written to it. It is for one goroutine.
type lineWriter struct {
	put     func(line string)
	partial []byte
}

// Write never fails.
func (w *lineWriter) Write(b []byte) (int, error) {
	w.partial = append(w.partial, b...)
	for {
		line, rest, found := bytes.Cut(w.partial, []byte("\n"))
		if !found {
			return len(b), nil
		}
		w.partial = rest
		w.put(string(line))
	}
}

// logEntry is what the demo reads of an access log line. The addresses are ip:port.
type logEntry struct {
	Remote string `json:"downstream_remote_address"`        // the client's address, as Envoy sees it
	Direct string `json:"downstream_direct_remote_address"` // the address that connected to Envoy; "" if it is not logged
	Code   int    `json:"response_code"`
}

// parseLogEntry reads a line in Consul's default JSON format.
func parseLogEntry(line string) (logEntry, error) {
	e := logEntry{Code: -1}
	err := json.Unmarshal([]byte(line), &e)
	if err == nil && (e.Remote == "" || e.Code < 0) {
		err = errors.New("no downstream_remote_address or response_code")
	}
	if err != nil {
		return logEntry{}, fmt.Errorf("access log line %q: %w", line, err)
	}
	return e, nil
}

// ready reports whether Envoy has received its first configuration and serves it. The error has Envoy's state.
func (e *envoy) ready(ctx context.Context) (bool, error) {
	text, err := e.get(ctx, "/ready")
	if state := strings.TrimSpace(string(text)); err != nil && state != "" {
		err = fmt.Errorf("envoy is in state %s", state)
	}
	return err == nil, err
}

// listenersDump is the part of /config_dump that the demo reads
// (envoy.admin.v3.ListenersConfigDump.DynamicListener).
type listenersDump struct {
	Configs []struct {
		Active struct {
			Listener struct {
				Address struct {
					Socket struct {
						Port int `json:"port_value"`
					} `json:"socket_address"`
				}
				Filters []struct{ Name string } `json:"listener_filters"`
			}
		} `json:"active_state"`
		Error struct{ Details string } `json:"error_state"`
	}
}

// listener reports whether Envoy's workers use the listener on a port, or are about to, and whether that reads PROXY
// protocol headers. If Envoy rejected a configuration, the error is an errRejected.
func (e *envoy) listener(ctx context.Context, port int) (active, proxyProtocol bool, err error) {
	text, err := e.get(ctx, "/config_dump?resource=dynamic_listeners")
	if err != nil {
		return false, false, err
	}
	var dump listenersDump
	if err := json.Unmarshal(text, &dump); err != nil {
		return false, false, fmt.Errorf("envoy's listeners: %w", err)
	}
	for _, c := range dump.Configs {
		if c.Error.Details != "" {
			return false, false, fmt.Errorf("%w: %s", errRejected, c.Error.Details)
		}
		if c.Active.Listener.Address.Socket.Port == port {
			active = true
			for _, f := range c.Active.Listener.Filters {
				proxyProtocol = proxyProtocol || f.Name == "envoy.filters.listener.proxy_protocol"
			}
		}
	}
	return active, proxyProtocol, nil
}

// listenersCreated returns how many listeners the workers have started since Envoy started, new versions of one
// listener included.
func (e *envoy) listenersCreated(ctx context.Context) (int, error) {
	text, err := e.get(ctx, "/stats?filter=^listener_manager.listener_create_success$")
	if err != nil {
		return 0, err
	}
	_, value, _ := strings.Cut(string(text), ": ")
	created, err := strconv.Atoi(strings.TrimSpace(value))
	if err != nil {
		return 0, fmt.Errorf("envoy's count of listeners: %w", err)
	}
	return created, nil
}

// get returns the body of a response of Envoy's admin interface
// (https://www.envoyproxy.io/docs/envoy/latest/operations/admin). If the status is not 200, there is an error as
// well.
func (e *envoy) get(ctx context.Context, path string) ([]byte, error) {
	addr, err := os.ReadFile(e.adminFile)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+strings.TrimSpace(string(addr))+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("envoy's %s: %s", path, resp.Status)
	}
	return text, err
}

// errRejected ends a wait.
var errRejected = errors.New("envoy rejected its configuration")

// How long the demo waits for one thing, on a busy machine, and how often it looks.
const (
	timeout  = 30 * time.Second
	interval = 10 * time.Millisecond
)

// waitFor calls check until it returns true. The error says what was waited for, and has the last error of check.
func waitFor(ctx context.Context, what string, check func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not there after %s", timeout))
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		done, err := check(ctx)
		if done {
			return nil
		}
		if errors.Is(err, errRejected) {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err != nil {
				return fmt.Errorf("%s: %w: %w", what, context.Cause(ctx), err)
			}
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		}
	}
}
