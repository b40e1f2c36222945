package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/usherproxy/usher/internal/memory"
	"github.com/usherproxy/usher/internal/problem"
)

// memoryShare is the share of the container's memory, in percent, that Go's heap, stacks and runtime may use. The rest is
// for what Go does not count: the program itself and what the kernel holds for the sockets.
const memoryShare = 90

// limitMemory sets the memory limit of the garbage collector from the limit of the cgroup, as of a container or a systemd
// unit, unless GOMEMLIMIT is set. It returns the limit in bytes, and where it is from; math.MaxInt64 is none.
func limitMemory() (limit int64, from string) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return debug.SetMemoryLimit(-1), "GOMEMLIMIT"
	}
	if most, err := memlimit.FromCgroup(); err == nil && most < math.MaxInt64 {
		debug.SetMemoryLimit(int64(most / 100 * memoryShare))
	}
	return debug.SetMemoryLimit(-1), fmt.Sprintf("%d %% of the cgroup's memory limit", memoryShare)
}

// needed is the least that Usher needs with these flags, without services and Envoys, and under the requests of any caller.
func (o serveOptions) needed() memory.Load {
	load := memory.Load{Requests: 64 * memory.MiB}
	if o.dataplaneAddr != "" {
		load.Messages = 100 * memory.MiB
	}
	return load
}

// describeMemory says for the start check whether the limit suffices for these flags.
func (o serveOptions) describeMemory(limit int64, from string) string {
	if limit == math.MaxInt64 {
		return "ok, there is no memory limit"
	}
	if needed := o.needed().Live(); int64(needed) > limit {
		return fmt.Sprintf("the limit is %d MiB (%s), and with these flags Usher can need %d MiB before it serves anything; raise the limit (docs/performance.md)",
			limit/memory.MiB, from, needed/memory.MiB)
	}
	return fmt.Sprintf("ok, the limit is %d MiB (%s)", limit/memory.MiB, from)
}

// When the live heap fills so much of the memory limit, in percent, the garbage collector runs most of the time.
const (
	memoryFull     = 90
	memoryEnough   = 80 // below that the problem is over
	memoryInterval = 10 * time.Second
)

// memoryWatch reports that the memory limit is too low for what Usher holds.
type memoryWatch struct {
	limit  int64
	live   func() uint64 // bytes of the heap that were not garbage at the last collection
	report func([]problem.Problem)
	full   bool
}

// liveHeap returns how much of the heap was not garbage at the last collection.
func liveHeap() uint64 {
	sample := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(sample)
	return sample[0].Value.Uint64()
}

// run compares until ctx ends.
func (w *memoryWatch) run(ctx context.Context) error {
	if w.limit == math.MaxInt64 {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(memoryInterval)
	defer ticker.Stop()
	for {
		w.check()
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (w *memoryWatch) check() {
	percent := float64(w.live()) / float64(w.limit) * 100
	if w.full == (percent >= memoryFull) || w.full && percent >= memoryEnough {
		return
	}
	w.full = !w.full
	var problems []problem.Problem
	if w.full {
		problems = append(problems, memoryProblem(w.limit))
	}
	w.report(problems)
}

// memoryProblem returns the problem of a memory limit that is nearly used up.
func memoryProblem(limit int64) problem.Problem {
	return problem.Problem{
		Where: "usher's memory",
		What: fmt.Sprintf("what it holds fills more than %d %% of its memory limit of %d MiB, so changes take longer, and the process can be killed; "+
			"raise the limit of the container or GOMEMLIMIT (docs/performance.md says how much Usher needs), or serve some of the gateways with a second Usher",
			memoryFull, limit/memory.MiB),
	}
}
