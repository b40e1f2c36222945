// Package reportkey reads the key of the reports of connections from a Secret of Kubernetes, so that all replicas of
// Usher have the same one, also after a restart. The first replica writes it.
package reportkey

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/retry"
)

// DataKey is the key of the Secret's data that has the secret.
const DataKey = "key"

// attemptTimeout bounds one attempt, and so how long Usher's start waits for the first one.
const attemptTimeout = 3 * time.Second

// Options are the parts of a Secret. All are required.
type Options struct {
	Client rest.Interface
	Logger *slog.Logger
	Secret types.NamespacedName          // it has to exist, and may be empty
	Report func(found []problem.Problem) // replaces the problems
}

// Secret is a Secret with the key. Use New.
//
// Usher reads it until it has the key, and then never again: another key changes all listeners, so it takes a restart.
type Secret struct {
	object   kubeapi.Object
	report   func([]problem.Problem)
	key      evidence.Key
	failures int
}

// New returns a Secret that is not read yet.
func New(o Options) *Secret {
	object := kubeapi.Object{Client: o.Client, Log: o.Logger, Kind: "Secret", At: o.Secret, Manifest: "docs/kubernetes-report-key.yaml"}
	return &Secret{object: object, report: o.Report}
}

// Attempt reads the key, or writes one if the Secret has none. The result is the zero Key if that fails, which is a problem
// and may take up to three seconds.
func (s *Secret) Attempt(ctx context.Context) evidence.Key {
	limited, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	key, err := s.readOrWrite(limited)
	switch {
	case ctx.Err() != nil:
		return evidence.Key{}
	case err != nil:
		s.failures++
		s.report([]problem.Problem{s.problem(err)})
		return evidence.Key{}
	}
	s.key = key
	s.report(nil)
	return key
}

// Run attempts until there is a key, calls put with it, and returns when ctx ends. Call it after an Attempt, by one
// goroutine.
func (s *Secret) Run(ctx context.Context, put func(evidence.Key)) error {
	for s.key.IsZero() {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry.Pause(s.failures)):
		}
		if key := s.Attempt(ctx); !key.IsZero() {
			put(key)
		}
	}
	<-ctx.Done()
	return nil
}

// readOrWrite returns the key. If two replicas write one, the API server refuses the second, which then reads the first's.
func (s *Secret) readOrWrite(ctx context.Context) (key evidence.Key, err error) {
	updateErr := kubeapi.Update(ctx, s.object, func(secret *corev1.Secret) (changed bool) {
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		data, exists := secret.Data[DataKey]
		if !exists {
			data = make([]byte, 32)
			rand.Read(data)
			secret.Data[DataKey] = data
		}
		key, err = evidence.ParseKey(data)
		return !exists
	})
	if updateErr != nil {
		return evidence.Key{}, updateErr
	}
	return key, err
}

// problem returns the problem for an error of readOrWrite.
func (s *Secret) problem(err error) problem.Problem {
	what := s.object.Explain(err)
	if errors.Is(err, evidence.ErrShortKey) {
		what = fmt.Sprintf("its data key %q is no key: %v. If you remove it, Usher writes one", DataKey, err)
	}
	return problem.Problem{
		Where: s.object.String(),
		What:  what + ". Meanwhile, Envoys do not report which connections begin with a PROXY header",
	}
}
