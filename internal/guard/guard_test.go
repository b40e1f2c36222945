package guard

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestAPanicIsAnErrorALogLineAndACount(t *testing.T) {
	var log bytes.Buffer
	err := Run(slog.New(slog.NewTextHandler(&log, nil)), "compile", func() error {
		var nothing []int
		return fmt.Errorf("%d", nothing[1])
	})
	caught, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("got %v, want a *guard.Error", err)
	}
	if !strings.HasPrefix(caught.At, "guard_test.go:") {
		t.Errorf("the panic began at %q, want a line of this file", caught.At)
	}
	if got := err.Error(); !strings.Contains(got, "panic in compile at guard_test.go:") || strings.Contains(got, "\n") {
		t.Errorf("the error reads %q", got)
	}
	if got := testutil.ToFloat64(Panics.WithLabelValues("compile")); got != 1 {
		t.Errorf("%v panics are counted, want 1", got)
	}
	if !strings.Contains(log.String(), "guard_test.go") {
		t.Errorf("the log has no stack:\n%s", &log)
	}
}

func TestAnErrorAndSuccessPassThrough(t *testing.T) {
	want := errors.New("refused")
	log := slog.New(slog.DiscardHandler)
	if err := Run(log, "x", func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	if err := Run(log, "x", func() error { return nil }); err != nil {
		t.Errorf("got %v, want none", err)
	}
}

var partInCode = regexp.MustCompile(`(?:guard\.Run|watchAgain)\([a-zA-Z., ]*, "([^"]+)"|guard\.Panics\.WithLabelValues\("([^"]+)"\)`)

// TestEachPartHasASeries compares the list with the calls in all of Usher's code.
func TestEachPartHasASeries(t *testing.T) {
	called := map[string]bool{}
	for _, dir := range []string{"../../cmd", "../../consul", "../../internal", "../../xds"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			code, err := os.ReadFile(path)
			for _, found := range partInCode.FindAllStringSubmatch(string(code), -1) {
				called[found[1]+found[2]] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := slices.Sorted(maps.Keys(called)); !slices.Equal(got, parts) {
		t.Errorf("the calls of Run have the parts %q, want %q", got, parts)
	}
}
