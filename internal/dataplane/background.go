package dataplane

import (
	"context"
	"log/slog"
	"sync"

	"golang.org/x/sync/singleflight"

	"github.com/usherproxy/usher/internal/guard"
)

// background are the goroutines of a server that outlive a call's handler. The server waits for them.
type background struct {
	sync.WaitGroup
	ctx  context.Context         // of questions that calls share
	stop context.CancelCauseFunc // ends ctx
	log  *slog.Logger
}

func newBackground(log *slog.Logger) *background {
	b := &background{log: log}
	b.ctx, b.stop = context.WithCancelCause(context.Background())
	return b
}

// share returns what ask returns. Calls with the same key at the same time share one question, which goes on without those
// that leave: ctx ends only the wait for it.
func share[T any](ctx context.Context, b *background, questions *singleflight.Group, key string, ask func(context.Context) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answered := make(chan answer, 1)
	b.Go(func() { // nothing would wait for a goroutine of DoChan
		value, err, _ := questions.Do(key, func() (any, error) {
			var value T
			err := guard.Run(b.log, "dataplane", func() (err error) {
				value, err = ask(b.ctx)
				return err
			})
			return value, err
		})
		answered <- answer{value.(T), err}
	})
	select {
	case a := <-answered:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}
