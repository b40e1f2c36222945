package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/memory"
	"github.com/usherproxy/usher/internal/problem"
)

// memoryShare is the share of the container's memory, in percent, that Go's heap, stacks and runtime may use. The rest is
// for what Go does not count: the program itself and what the kernel holds for the sockets.
const memoryShare = 90

// limitMemory sets the memory limit of the garbage collector from the limit of the cgroup, as of a container or a systemd
// unit, unless GOMEMLIMIT is set. It returns the limit in bytes, and where it is from; math.MaxInt64 is none. The error says
// why the limit of the cgroup is not known.
func limitMemory() (limit int64, from string, err error) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return debug.SetMemoryLimit(-1), "GOMEMLIMIT", nil
	}
	most, err := memlimit.FromCgroup()
	switch {
	case errors.Is(err, memlimit.ErrNoLimit), errors.Is(err, memlimit.ErrNoCgroup), errors.Is(err, memlimit.ErrCgroupsNotSupported):
		err = nil
	case err == nil && most < math.MaxInt64:
		debug.SetMemoryLimit(int64(most / 100 * memoryShare))
	}
	return debug.SetMemoryLimit(-1), fmt.Sprintf("%d %% of the cgroup's memory limit", memoryShare), err
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
func (o serveOptions) describeMemory(limit int64, from string, err error) string {
	if err != nil {
		return fmt.Sprintf("the memory limit of the cgroup cannot be read (%v); set GOMEMLIMIT to nine tenths of the container's limit", err)
	}
	if limit == math.MaxInt64 {
		return "ok, there is no memory limit"
	}
	if needed := o.needed().Live(); int64(needed) > limit {
		return fmt.Sprintf("the limit is %d MiB (%s), and with these flags Usher can need %d MiB before it serves anything; raise the limit (docs/performance.md)",
			limit/memory.MiB, from, needed/memory.MiB)
	}
	return fmt.Sprintf("ok, the limit is %d MiB (%s)", limit/memory.MiB, from)
}

// When what is not garbage fills so much of the memory limit, in percent, the garbage collector runs most of the time.
const (
	memoryFull     = 90
	memoryEnough   = 80 // below that the problem is over
	memoryInterval = 10 * time.Second
)

// memoryWatch reports that the memory limit is too low for what Usher holds.
type memoryWatch struct {
	limit  int64
	live   func() uint64 // bytes that are not garbage
	report func([]problem.Problem)
	full   bool
}

// liveMemory returns how much of what counts for the memory limit is not garbage: of the heap at the last collection, and of
// stacks and the runtime's own data now.
func liveMemory() (sum uint64) {
	samples := []runtimemetrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/stacks:bytes"},
		{Name: "/memory/classes/os-stacks:bytes"},
		{Name: "/memory/classes/metadata/mcache/inuse:bytes"},
		{Name: "/memory/classes/metadata/mspan/inuse:bytes"},
		{Name: "/memory/classes/metadata/other:bytes"},
	}
	runtimemetrics.Read(samples)
	for _, s := range samples {
		sum += s.Value.Uint64()
	}
	return sum
}

// newMemoryWatch limits the memory. It returns a watch of the limit, and what the start check says about it.
func (o serveOptions) newMemoryWatch(problems *controlplane.Problems) (w *memoryWatch, state string) {
	limit, from, err := limitMemory()
	w = &memoryWatch{limit: limit, live: liveMemory, report: func(found []problem.Problem) { problems.Report("memory", found) }}
	return w, o.describeMemory(limit, from, err)
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
