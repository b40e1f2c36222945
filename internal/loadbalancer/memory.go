package loadbalancer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/latest"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/retry"
	"github.com/usherproxy/usher/internal/settings"
)

// Memory keeps what a restarted Usher needs to know. *statedir.Dir implements it.
type Memory interface {
	// Read returns what Write stored last, and when. If there is nothing, the error is fs.ErrNotExist.
	Read(name string) (payload []byte, written time.Time, err error)
	Write(name string, payload []byte) error
	// OnReplaced has f called, until stop, when everything has to be written again. f must not block.
	OnReplaced(f func()) (stop func())
}

// remembered is what a restarted Usher needs to know about a Service while the API server is away.
type remembered struct {
	State serviceState `json:"state"`
	// Modes are what follows from it, by port. A change of them alone, at the end of a grace period, is a reason to write: a
	// restarted Usher takes the modes of the last write, and not those of a time that has passed without it.
	Modes map[int]settings.Mode `json:"modes"`
}

// restoredWait is how long an Usher that remembers a Service waits for the API server before its listeners get the modes
// that they had. If the server answers in this time, they get no mode that is out of date.
const restoredWait = 500 * time.Millisecond

// memory is what is remembered of one Service.
type memory struct {
	in   Memory // nil: nothing is remembered
	name string
	log  *slog.Logger

	written string                         // what was given to Write last
	next    latest.Value[[]byte]           // what to write
	failed  latest.Value[*problem.Problem] // why that fails; nil: it is written
}

func newMemory(in Memory, of gateway.ID, id gateway.KubernetesService, log *slog.Logger) *memory {
	// Names of files have a limit, and those of Kubernetes can be as long.
	readable := "service~" + id.Namespace + "~" + id.Name
	hash := sha256.Sum256([]byte(of.String() + "\x00" + readable))
	return &memory{
		in: in, name: readable[:min(len(readable), 100)] + "~" + hex.EncodeToString(hash[:8]), log: log,
		next: latest.New[[]byte](), failed: latest.New[*problem.Problem](),
	}
}

// restore returns the state that is remembered, as one whose Service is unknown since it was written: the modes stay until
// the API server answers. It returns the zero state if there is none.
func (m *memory) restore(now time.Time) serviceState {
	if m.in == nil {
		return serviceState{}
	}
	payload, written, err := m.in.Read(m.name)
	var r remembered
	if err == nil {
		err = json.Unmarshal(payload, &r)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return serviceState{}
	case err != nil:
		m.log.Warn("what was remembered of a Service cannot be used; its listeners wait for the API server", "error", err)
		return serviceState{}
	}
	state := r.State.plausible(now)
	if state.ResourceVersion == "" {
		return serviceState{}
	}
	return state.freeze(written)
}

// remember gives what is known to the goroutine that writes it, if it is news.
func (m *memory) remember(s serviceState, b *gateway.Balancer) {
	if m.in == nil || s.ResourceVersion == "" {
		return
	}
	r := remembered{State: s, Modes: map[int]settings.Mode{0: b.OtherPorts.Mode}}
	for port, state := range b.Ports {
		r.Modes[port] = state.Mode
	}
	payload, _ := json.Marshal(r) // it does not fail, because every value can be written
	if string(payload) != m.written {
		m.written = string(payload)
		m.next.Put(payload)
	}
}

// run writes until ctx ends. It has its own goroutine, because a disk may not answer.
func (m *memory) run(ctx context.Context) {
	if m.in == nil {
		return
	}
	again := latest.New[struct{}]()
	defer m.in.OnReplaced(func() { again.Put(struct{}{}) })()
	var last []byte
	for {
		select {
		case <-ctx.Done():
			select {
			case payload := <-m.next.C(): // the last one counts for the next start
				m.write(ctx, payload)
			default:
			}
			return
		case last = <-m.next.C():
		case <-again.C():
		}
		if last != nil {
			m.write(ctx, last)
		}
	}
}

// write writes until it succeeds, or there is something newer.
func (m *memory) write(ctx context.Context, payload []byte) {
	for failures := 1; ; failures++ {
		err := guard.Run(m.log, "kubernetes", func() error { return m.in.Write(m.name, payload) })
		if err == nil {
			if failures > 1 {
				m.failed.Put(nil)
			}
			return
		}
		m.failed.Put(notRemembered(err))
		select {
		case <-ctx.Done():
			return
		case payload = <-m.next.C():
		case <-time.After(retry.Pause(failures)):
		}
	}
}

// notRemembered returns the problem for an error of Write.
func notRemembered(err error) *problem.Problem {
	return &problem.Problem{
		Where: "--state-dir",
		What:  err.Error() + ". If Usher restarts while the API server is away, listeners with mode auto get the modes that were written last",
	}
}
