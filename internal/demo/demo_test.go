package demo

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWithoutAnEnvoyTheErrorSaysWhatToDo(t *testing.T) {
	noProgram := filepath.Join(t.TempDir(), "envoy")
	if err := os.WriteFile(noProgram, []byte("no program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, envoy := range []string{filepath.Join(t.TempDir(), "envoy"), "", noProgram} {
		o := optionsFor(t, "", untilDone)
		o.Envoy = envoy
		err := Run(t.Context(), o)
		if err == nil || !strings.HasPrefix(err.Error(), "the demo needs an Envoy binary: ") ||
			!strings.HasSuffix(err.Error(), "; set its path with --envoy") {
			t.Errorf("%q: got error %v", envoy, err)
		}
	}
}

func TestAPartThatEndsEndsTheDemo(t *testing.T) {
	broken := errors.New("port taken")
	for name, tc := range map[string]struct {
		script string
		serve  func(context.Context, string, string) error
		want   string
	}{
		"usher fails": {"exec sleep 600", func(context.Context, string, string) error { return broken }, "usher: port taken"},
		"usher ends":  {"exec sleep 600", func(context.Context, string, string) error { return nil }, "usher stopped unexpectedly"},
		"envoy ends":  {"exit 1", untilDone, "envoy exited unexpectedly (exit status 1); its last log line: none"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Run(t.Context(), optionsFor(t, tc.script, tc.serve))
			if err == nil || err.Error() != tc.want {
				t.Errorf("got error %v, want %s", err, tc.want)
			}
		})
	}
}

func TestADemoThatIsCanceledReturnsAnErrorAndLeavesNothing(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var dir string
	err := Run(ctx, optionsFor(t, "exec sleep 600", func(ctx context.Context, configDir, _ string) error {
		dir = configDir
		cancel()
		return untilDone(ctx, "", "")
	}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want context.Canceled", err)
	}
	if !strings.HasPrefix(dir, tmp) {
		t.Errorf("config directory %s is not below %s", dir, tmp)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, error %v", left, err)
	}
}

func untilDone(ctx context.Context, _, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}

// optionsFor gives the options of a demo whose Envoy is a shell script.
func optionsFor(t *testing.T, script string, serve func(context.Context, string, string) error) Options {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "envoy")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Options{Envoy: binary, Out: &bytes.Buffer{}, Serve: serve, Logger: slog.New(slog.DiscardHandler)}
}
