// Package inflight bounds how many requests run at the same time.
package inflight

import (
	"context"
	"sync"
)

// Limit bounds requests: its capacity is how many may run at the same time. Make it with make.
type Limit chan struct{}

// Acquire waits until another request may run. Call release at its end; a second call does nothing. An error is the cause of
// ctx's end.
func (l Limit) Acquire(ctx context.Context) (release func(), err error) {
	select {
	case l <- struct{}{}:
		return sync.OnceFunc(func() { <-l }), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// TryAcquire returns at once: ok is false if no other request may run now. Call release at the request's end, if ok; a second
// call does nothing.
func (l Limit) TryAcquire() (release func(), ok bool) {
	select {
	case l <- struct{}{}:
		return sync.OnceFunc(func() { <-l }), true
	default:
		return nil, false
	}
}

// CallerLimit bounds requests, and those of one caller: its requests wait for each other before they delay those of others.
// Use NewCallerLimit.
type CallerLimit[C comparable] struct {
	all       Limit
	perCaller int

	mu      sync.Mutex
	callers map[C]*callerState
}

// callerState is there while a caller has requests.
type callerState struct {
	limit    Limit
	requests int // that run or wait
}

// NewCallerLimit returns a limit for all requests, and for those of one caller.
func NewCallerLimit[C comparable](all, perCaller int) *CallerLimit[C] {
	return &CallerLimit[C]{all: make(Limit, all), perCaller: perCaller, callers: map[C]*callerState{}}
}

// Acquire waits until another request of the caller may run. Call release once, at its end. An error is the cause of ctx's
// end.
func (l *CallerLimit[C]) Acquire(ctx context.Context, caller C) (release func(), err error) {
	own := l.add(caller)
	releaseOwn, err := own.limit.Acquire(ctx)
	if err != nil {
		l.remove(caller, own)
		return nil, err
	}
	releaseAll, err := l.all.Acquire(ctx)
	if err != nil {
		releaseOwn()
		l.remove(caller, own)
		return nil, err
	}
	return func() {
		releaseAll()
		releaseOwn()
		l.remove(caller, own)
	}, nil
}

func (l *CallerLimit[C]) add(caller C) *callerState {
	l.mu.Lock()
	defer l.mu.Unlock()
	own := l.callers[caller]
	if own == nil {
		own = &callerState{limit: make(Limit, l.perCaller)}
		l.callers[caller] = own
	}
	own.requests++
	return own
}

func (l *CallerLimit[C]) remove(caller C, own *callerState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if own.requests--; own.requests == 0 {
		delete(l.callers, caller)
	}
}
