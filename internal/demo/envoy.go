package demo

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/usherproxy/usher/internal/bootstrap"
)

// gatewayName is what the lab calls its gateway.
const gatewayName = "ingress-gateway"

// envoy is the lab's gateway: an Envoy process.
type envoy struct {
	binary string
	// bootstrapFile is what it starts with; adminFile is where it says on
	// which ip:port its admin interface listens.
	bootstrapFile, adminFile string
	logger                   *slog.Logger
	// access gets the lines of the access log. Envoy waits when nobody takes
	// them.
	access chan string
}

// newEnvoy writes the bootstrap of an Envoy that gets its configuration from
// xdsAddr.
func newEnvoy(binary, dir, xdsAddr string, logger *slog.Logger) (*envoy, error) {
	e := &envoy{
		binary:        binary,
		bootstrapFile: filepath.Join(dir, "bootstrap.json"),
		adminFile:     filepath.Join(dir, "admin-address"),
		logger:        logger,
		access:        make(chan string),
	}
	f, err := os.OpenFile(e.bootstrapFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("bootstrap of the gateway: %w", err)
	}
	err = bootstrap.Write(f, bootstrap.Options{Gateway: gatewayName, XDSAddr: xdsAddr, AdminAddr: "127.0.0.1:0"})
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, fmt.Errorf("bootstrap of the gateway: %w", err)
	}
	return e, nil
}

// Run runs the process until ctx ends, and waits for its end. An end that
// nobody asked for is an error with the last thing that Envoy said.
func (e *envoy) Run(ctx context.Context) error {
	// Linux sends a parent-death signal when the thread ends that started the
	// child (prctl(2), PR_SET_PDEATHSIG), so that thread has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	last := "nothing"
	cmd := exec.CommandContext(ctx, e.binary, e.args()...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = endWithParent()
	cmd.Stdout = &lineWriter{put: func(line string) {
		select {
		case e.access <- line:
		case <-ctx.Done():
		}
	}}
	cmd.Stderr = &lineWriter{put: func(line string) {
		if line = strings.TrimSpace(line); line == "" {
			return
		}
		last = line
		e.logger.Debug("envoy says", "line", line)
	}}
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil
	case cmd.Process == nil:
		return noEnvoy(err)
	}
	return fmt.Errorf("envoy ended by itself (%s); the last it said: %s", describeEnd(err), last)
}

// args make one worker, so that one confirmation stands for all, no shared
// memory, so that other Envoys on the machine do not matter, and an access log
// that is written as things happen.
func (e *envoy) args() []string {
	return []string{
		"--config-path", e.bootstrapFile,
		"--admin-address-path", e.adminFile,
		"--concurrency", "1",
		"--disable-hot-restart",
		"--file-flush-interval-msec", "20",
		"--log-level", "warning",
	}
}

// noEnvoy says why no Envoy can be started, and what to do.
func noEnvoy(err error) error {
	return fmt.Errorf("the demo needs an Envoy binary: %w; name one with --envoy", err)
}

func describeEnd(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}
