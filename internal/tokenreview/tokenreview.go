// Package tokenreview checks with Kubernetes that a service account token is valid, and of which pod it is
// (https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/).
package tokenreview

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/problem"
)

// ErrRefused means that Kubernetes does not accept the token, or that it is the token of no pod.
var ErrRefused = errors.New("kubernetes refuses the token")

const (
	path = "/apis/authentication.k8s.io/v1/tokenreviews"
	// The keys under which Kubernetes returns the pod that a token was made for, and what user names begin with.
	podName       = "authentication.kubernetes.io/pod-name"
	podUID        = "authentication.kubernetes.io/pod-uid"
	accountPrefix = "system:serviceaccount:"

	firstTimeout = 5 * time.Second // of a review
	nextTimeout  = 2 * time.Second // if Kubernetes has accepted the same before
	maxRunning   = 16              // reviews at the same time
	maxAccepted  = 65_536          // answers that are remembered
)

// Options are the parts of a Reviewer. All are required.
type Options struct {
	Client rest.Interface // its user needs the right to create tokenreviews
	Logger *slog.Logger
	// StaleIfError is for how long a token stays accepted that Kubernetes has accepted, while Kubernetes does not answer.
	StaleIfError time.Duration
	// Report replaces the problems, which the Reviewer logs itself.
	Report func(found []problem.Problem)
}

// Reviewer checks tokens. It remembers keyed hashes of the tokens that Kubernetes has accepted, never the tokens. Its
// methods are safe for concurrent use. Use New.
type Reviewer struct {
	options  Options
	key      [sha256.Size]byte // of the hashes
	accepted *lru.Cache[[sha256.Size]byte, acceptance]
	places   chan struct{} // of the reviews that run

	mu       sync.Mutex
	failing  bool      // the last review had no answer
	loggedAt time.Time // when that was last logged
}

// Pod is the pod that a token was made for.
type Pod struct{ Namespace, Name, UID string }

// acceptance is that Kubernetes has accepted a token.
type acceptance struct {
	pod Pod
	at  time.Time
}

// New returns a Reviewer.
func New(o Options) *Reviewer {
	r := &Reviewer{options: o, places: make(chan struct{}, maxRunning)}
	_, _ = rand.Read(r.key[:])                                          // never fails
	r.accepted, _ = lru.New[[sha256.Size]byte, acceptance](maxAccepted) // fails only for sizes below 1
	return r
}

// Review returns the pod that the token was made for. It returns ErrRefused if the token is not valid (any more), or the
// one of no pod. It returns another error if Kubernetes does not answer and has not accepted the token recently.
func (r *Reviewer) Review(ctx context.Context, token string) (Pod, error) {
	key := r.keyOf(token)
	last, before := r.accepted.Peek(key)
	before = before && time.Since(last.at) < r.options.StaleIfError
	status, err := r.ask(ctx, token, before)
	switch {
	case err == nil:
		r.noteAnswer()
	case ctx.Err() != nil:
		return Pod{}, context.Cause(ctx)
	case before:
		r.noteFailure(err)
		return last.pod, nil
	default:
		r.noteFailure(err)
		return Pod{}, fmt.Errorf("TokenReview at kubernetes: %w", err)
	}
	pod, err := podOf(status)
	if err != nil {
		r.accepted.Remove(key)
		return Pod{}, err
	}
	r.accepted.Add(key, acceptance{pod, time.Now()})
	return pod, nil
}

// podOf returns the pod of a token, or ErrRefused with the reason.
func podOf(s authenticationv1.TokenReviewStatus) (Pod, error) {
	if !s.Authenticated {
		return Pod{}, fmt.Errorf("%w: %s", ErrRefused, cmp.Or(s.Error, "it is not valid"))
	}
	names, uids := s.User.Extra[podName], s.User.Extra[podUID]
	account, ok := strings.CutPrefix(s.User.Username, accountPrefix)
	if !ok || len(names) != 1 || len(uids) != 1 {
		return Pod{}, fmt.Errorf("%w: it is of no pod; send the token that is mounted into the gateway's pod", ErrRefused)
	}
	namespace, _, _ := strings.Cut(account, ":")
	return Pod{Namespace: namespace, Name: names[0], UID: uids[0]}, nil
}

// ask sends the review to Kubernetes.
func (r *Reviewer) ask(ctx context.Context, token string, again bool) (authenticationv1.TokenReviewStatus, error) {
	timeout := firstTimeout
	if again {
		timeout = nextTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w (%v)", kubeapi.ErrNoAnswer, timeout))
	defer cancel()
	var review authenticationv1.TokenReview
	select {
	case r.places <- struct{}{}:
		defer func() { <-r.places }()
	case <-ctx.Done():
		return review.Status, context.Cause(ctx)
	}
	body, err := json.Marshal(authenticationv1.TokenReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"},
		Spec:     authenticationv1.TokenReviewSpec{Token: token},
	})
	if err != nil {
		return review.Status, err
	}
	answer, err := r.options.Client.Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body(body).MaxRetries(0).DoRaw(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return review.Status, context.Cause(ctx)
	case err != nil:
		return review.Status, reviewError(err, answer)
	}
	if err := json.Unmarshal(answer, &review); err != nil {
		return review.Status, fmt.Errorf("unexpected answer: %w; check that this is the address of a Kubernetes API server", err)
	}
	return review.Status, nil
}

// reviewError returns the error of a review that the API server refuses, with the server's words.
func reviewError(err error, answer []byte) error {
	var status metav1.Status
	if json.Unmarshal(answer, &status) == nil && status.Message != "" {
		err = &apierrors.StatusError{ErrStatus: status}
	}
	if apierrors.IsForbidden(err) {
		err = fmt.Errorf("%w; give Usher's service account the right to create tokenreviews (ClusterRole system:auth-delegator)", err)
	}
	return err
}

func (r *Reviewer) keyOf(token string) [sha256.Size]byte {
	h := hmac.New(sha256.New, r.key[:])
	h.Write([]byte(token))
	return [sha256.Size]byte(h.Sum(nil))
}

// noteFailure logs that Kubernetes does not answer: once for an outage, and at most once a minute.
func (r *Reviewer) noteFailure(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.failing && time.Since(r.loggedAt) > time.Minute {
		r.loggedAt = time.Now()
		r.options.Logger.Warn("kubernetes does not answer TokenReviews; Envoys that it accepted before may still connect, others are refused",
			"at_most", r.options.StaleIfError, "error", err)
	}
	if !r.failing {
		r.options.Report([]problem.Problem{r.problem(err)})
	}
	r.failing = true
}

// problem returns the problem for a review without an answer.
func (r *Reviewer) problem(err error) problem.Problem {
	why := err.Error() // reviewError has added what to do
	if !apierrors.IsForbidden(err) {
		why = kubeapi.Explain(err, "")
	}
	return problem.Problem{
		Where: "Kubernetes TokenReviews (--token-review)",
		What: why + ". Meanwhile, Envoys whose tokens were accepted before may connect for " + r.options.StaleIfError.String() +
			", and others are refused",
	}
}

func (r *Reviewer) noteAnswer() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failing {
		r.options.Logger.Info("kubernetes answers TokenReviews again")
		r.options.Report(nil)
	}
	r.failing = false
}
