package demo

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnEnvoyThatEndsByItselfIsAnErrorWithItsLastWords(t *testing.T) {
	e := fakeEnvoy(t, "echo starting >&2; echo 'cannot bind' >&2; echo >&2; exit 7")
	err := e.Run(t.Context())
	const want = "envoy ended by itself (exit status 7); the last it said: cannot bind"
	if err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func TestAnEnvoyThatEndsWithoutAWordIsAnError(t *testing.T) {
	err := fakeEnvoy(t, "exit 0").Run(t.Context())
	const want = "envoy ended by itself (exit status 0); the last it said: nothing"
	if err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func TestTheEndOfTheContextEndsEnvoyEvenIfNobodyReadsItsLog(t *testing.T) {
	e := fakeEnvoy(t, "echo first; echo second; echo third; exec sleep 600")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	if line := <-e.access; line != "first" {
		t.Errorf("got line %q, want %q", line, "first")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v, want nil", err)
	}
}

func TestEnvoyStartsWithTheBootstrapAndAFileForItsAdminAddress(t *testing.T) {
	e := fakeEnvoy(t, `cat "$2" | tr -d '\n'; echo; echo 127.0.0.1:4711 > "$4"; exec sleep 600`)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	if line := <-e.access; !strings.Contains(line, `"cluster": "ingress-gateway"`) {
		t.Errorf("the bootstrap is %s", line)
	}
	a, err := e.admin(ctx)
	if err != nil || a.addr != "127.0.0.1:4711" {
		t.Errorf("admin address %q, error %v; want 127.0.0.1:4711", a.addr, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v, want nil", err)
	}
}

// fakeEnvoy is an Envoy whose binary is a shell script.
func fakeEnvoy(t *testing.T, script string) *envoy {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "envoy")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	e, err := newEnvoy(binary, dir, "127.0.0.1:18000", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return e
}
