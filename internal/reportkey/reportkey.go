// Package reportkey reads the key of the reports of connections from a Secret of Kubernetes, so that all replicas of
// Usher have the same one, also after a restart. The first replica writes it.
package reportkey

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/latest"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/retry"
)

// DataKey is the key of the Secret's data that has the secret.
const DataKey = "key"

// attemptTimeout bounds one attempt, and so how long Usher's start waits for the first one.
const attemptTimeout = 3 * time.Second

// Options are the parts of a Secret. All but Memory are required.
type Options struct {
	Client rest.Interface
	Logger *slog.Logger
	Secret types.NamespacedName          // it has to exist, and may be empty
	Report func(found []problem.Problem) // replaces the problems
	// Memory keeps the key across restarts, so that listeners stay as they are while the API server is away. Nil: nothing
	// does.
	Memory Memory
}

// Memory keeps what a restarted Usher needs to know. *statedir.Dir implements it.
type Memory interface {
	// Read returns what Write stored last, and when. If there is nothing, the error is fs.ErrNotExist.
	Read(name string) (payload []byte, written time.Time, err error)
	Write(name string, payload []byte) error
	// OnReplaced has f called, until stop, when everything has to be written again. f must not block.
	OnReplaced(f func()) (stop func())
}

// memoryName is the name of the key in the Memory.
const memoryName = "report-key"

// Secret is a Secret with the key. Use New.
//
// Usher reads it until it has the key, and then never again: another key changes all listeners, so it takes a restart.
type Secret struct {
	object   kubeapi.Object
	options  Options
	key      evidence.Key // that the Secret has
	failures int
	// remembered is the data of the key that the Memory has; empty: there is none.
	remembered []byte
}

// New returns a Secret that is not read yet.
func New(o Options) *Secret {
	object := kubeapi.Object{Client: o.Client, Log: o.Logger, Kind: "Secret", At: o.Secret, Manifest: "docs/kubernetes-report-key.yaml"}
	return &Secret{object: object, options: o}
}

// Start returns the key that is remembered, at once, or else the result of an Attempt.
func (s *Secret) Start(ctx context.Context) evidence.Key {
	if s.options.Memory != nil {
		data, _, err := s.options.Memory.Read(memoryName)
		var key evidence.Key
		if err == nil {
			key, err = evidence.ParseKey(data)
		}
		switch {
		case err == nil:
			s.remembered = data
			return key
		case !errors.Is(err, fs.ErrNotExist):
			s.options.Logger.Warn("the remembered key of connection reports cannot be used; Usher asks the API server", "error", err)
		}
	}
	return s.Attempt(ctx)
}

// Attempt reads the key, or writes one if the Secret has none. The result is the zero Key if that fails, which is a problem
// and may take up to three seconds.
func (s *Secret) Attempt(ctx context.Context) evidence.Key {
	limited, cancel := context.WithTimeoutCause(ctx, attemptTimeout, kubeapi.ErrNoAnswer)
	defer cancel()
	data, err := s.readOrWrite(limited)
	var key evidence.Key
	if err == nil {
		key, err = evidence.ParseKey(data)
	}
	switch {
	case ctx.Err() != nil:
		return evidence.Key{}
	case err != nil:
		s.failures++
		s.options.Report([]problem.Problem{s.problem(kubeapi.CauseOf(limited, err))})
		return evidence.Key{}
	}
	s.key = key
	s.options.Report(nil)
	if !bytes.Equal(data, s.remembered) {
		s.remember(data)
	}
	return key
}

// remember keeps the key for the next start.
func (s *Secret) remember(data []byte) {
	if s.options.Memory == nil {
		return
	}
	s.remembered = data
	if err := s.options.Memory.Write(memoryName, data); err != nil {
		s.options.Logger.Warn("the key of connection reports cannot be remembered; a restart while the API server is away will change listeners", "error", err)
	}
}

// Run attempts until the Secret has answered, calls put with its key, and returns when ctx ends. Call it after Start, by
// one goroutine.
func (s *Secret) Run(ctx context.Context, put func(evidence.Key)) error {
	for s.key.IsZero() {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry.Pause(max(1, s.failures))):
		}
		if key := s.Attempt(ctx); !key.IsZero() {
			put(key)
		}
	}
	if s.options.Memory == nil {
		<-ctx.Done()
		return nil
	}
	again := latest.New[struct{}]()
	defer s.options.Memory.OnReplaced(func() { again.Put(struct{}{}) })()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C():
			s.remember(s.remembered)
		}
	}
}

// readOrWrite returns the data of the key. If two replicas write one, the API server refuses the second, which then reads the first's.
func (s *Secret) readOrWrite(ctx context.Context) (data []byte, err error) {
	err = kubeapi.Update(ctx, s.object, func(secret *corev1.Secret) (changed bool) {
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		var exists bool
		if data, exists = secret.Data[DataKey]; !exists {
			data = make([]byte, 32)
			rand.Read(data)
			secret.Data[DataKey] = data
		}
		return !exists
	})
	return data, err
}

// problem returns the problem for an error of readOrWrite.
func (s *Secret) problem(err error) problem.Problem {
	what := s.object.Explain(err)
	if errors.Is(err, evidence.ErrShortKey) {
		what = fmt.Sprintf("its data key %q is no key: %v. If you remove it, Usher writes one", DataKey, err)
	}
	meanwhile := ". Meanwhile, Envoys do not report which connections begin with a PROXY header"
	if s.remembered != nil {
		meanwhile = ". Meanwhile, Usher uses the key that it remembers (--state-dir)"
	}
	return problem.Problem{Where: s.object.String(), What: what + meanwhile}
}
