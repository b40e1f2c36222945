package kubeapi

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/usherproxy/usher/internal/retry"
)

// AnswerTimeout is the time after which a missing answer of the API server is a problem.
const AnswerTimeout = 5 * time.Second

// ErrNoAnswer means that the API server did not answer in time.
var ErrNoAnswer = errors.New("no answer in time")

// CauseOf returns why ctx has ended, or err if it has not.
func CauseOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Pause returns the pause after so many failures in a row, the last of which is err; nil is the end of a connection. It is
// longer if the API server asks for that (Retry-After), and never longer than retry.LongestPause: a server that is well
// again is asked soon.
func Pause(failures int, err error) time.Duration {
	pause := retry.Pause(failures)
	if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
		pause = max(pause, min(retry.LongestPause, time.Duration(seconds)*time.Second))
	}
	return pause
}
