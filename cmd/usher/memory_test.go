package main

import (
	"errors"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/usherproxy/usher/internal/memory"
	"github.com/usherproxy/usher/internal/problem"
)

func TestMemoryLimitThatIsTooLowIsAProblem(t *testing.T) {
	var live uint64
	var got []problem.Problem
	reports := 0
	w := &memoryWatch{limit: 100 * memory.MiB, live: func() uint64 { return live * memory.MiB }, report: func(p []problem.Problem) { got, reports = p, reports+1 }}
	for _, step := range []struct {
		live    uint64
		problem bool
		reports int
	}{{10, false, 0}, {89, false, 0}, {90, true, 1}, {120, true, 1}, {85, true, 1}, {79, false, 2}, {85, false, 2}} {
		live = step.live
		w.check()
		if (len(got) > 0) != step.problem || reports != step.reports {
			t.Errorf("%d MiB are live: %v after %d reports, want a problem: %v after %d", step.live, got, reports, step.problem, step.reports)
		}
	}
}

func TestTheStartCheckComparesTheMemoryLimit(t *testing.T) {
	both := serveOptions{dataplaneAddr: "127.0.0.1:8502"}
	for _, tc := range []struct {
		o     serveOptions
		limit int64
		want  string
	}{
		{serveOptions{}, math.MaxInt64, "ok, there is no memory limit"},
		{serveOptions{}, 460 * memory.MiB, "ok, the limit is 460 MiB (GOMEMLIMIT)"},
		{serveOptions{}, 64 * memory.MiB, "the limit is 64 MiB (GOMEMLIMIT), and with these flags Usher can need "},
		{both, 460 * memory.MiB, "ok, the limit is 460 MiB"},
		{both, 160 * memory.MiB, "the limit is 160 MiB (GOMEMLIMIT), and with these flags Usher can need "},
	} {
		if got := tc.o.describeMemory(tc.limit, "GOMEMLIMIT", nil); !strings.HasPrefix(got, tc.want) {
			t.Errorf("with %d bytes: got %q, want %q", tc.limit, got, tc.want)
		}
	}
}

func TestAMemoryLimitThatCannotBeReadIsInTheStartCheck(t *testing.T) {
	got := serveOptions{}.describeMemory(math.MaxInt64, "", errors.New("bad line"))
	if !strings.HasPrefix(got, "the memory limit of the cgroup cannot be read (bad line); set GOMEMLIMIT") {
		t.Errorf("got %q", got)
	}
}

// TestTheLiveMemoryIsKnown holds a part of the heap, and many stacks.
func TestTheLiveMemoryIsKnown(t *testing.T) {
	held := make([]byte, 32*memory.MiB)
	runtime.GC()
	before := liveMemory()
	if before < uint64(len(held)) {
		t.Errorf("%d bytes, while the test holds %d", before, len(held))
	}
	var running sync.WaitGroup
	end := make(chan struct{})
	for range 10000 {
		running.Go(func() { <-end })
	}
	if got := liveMemory(); got < before+10*memory.MiB {
		t.Errorf("%d bytes before, and %d with the stacks of 10000 goroutines", before, got)
	}
	close(end)
	running.Wait()
	runtime.KeepAlive(held)
}
