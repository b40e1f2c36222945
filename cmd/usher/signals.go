package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// signals are the signals that usher serve handles. The zero value receives none.
type signals struct {
	reload <-chan os.Signal // SIGHUP
	end    <-chan os.Signal // SIGTERM and SIGINT
}

// notify starts to receive signals, and returns a function that stops that. In between the process ignores SIGPIPE:
// Usher must not end when the reader of its log ends.
func notify() (signals, func()) {
	reload, end := make(chan os.Signal, 1), make(chan os.Signal, 2)
	signal.Notify(reload, syscall.SIGHUP)
	signal.Notify(end, syscall.SIGTERM, os.Interrupt)
	signal.Ignore(syscall.SIGPIPE)
	return signals{reload: reload, end: end}, func() {
		signal.Stop(reload)
		signal.Stop(end)
		signal.Reset(syscall.SIGPIPE)
	}
}

// reloadable is a file or directory that Usher reloads at SIGHUP.
type reloadable struct {
	path   string
	reload func()
}

// signalHandler handles signals.
type signalHandler struct {
	log         *slog.Logger
	signals     signals
	reloadables []reloadable
	ready       *readiness
	servers     *servers
	drainTime   time.Duration // how long Usher takes to end the streams
}

// run handles signals until ctx ends, or until a signal has ended the streams.
func (h *signalHandler) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.signals.reload:
			h.reload()
		case <-h.signals.end:
			h.shutDown(ctx)
			return nil
		}
	}
}

// reload makes Usher read its files again. Their readers log what changed.
func (h *signalHandler) reload() {
	paths := []string{}
	for _, f := range h.reloadables {
		f.reload()
		paths = append(paths, f.path)
	}
	h.log.Info("reloading files", "signal", "SIGHUP", "paths", paths)
}

// streamCloseTimeout is how long Envoys may take to close their streams after Usher has ended them.
const streamCloseTimeout = time.Second

// shutDown asks Envoys to connect again, a few at a time. It returns when all have gone, when their time is over, or
// at a second signal.
func (h *signalHandler) shutDown(ctx context.Context) {
	h.ready.draining.Store(true)
	h.log.Info("shutting down; a second signal ends usher at once", "envoys", h.servers.xds.Streams(), "drain_time", h.drainTime)
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, h.drainTime+streamCloseTimeout)
	defer cancel()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		h.servers.drain(ctx, h.drainTime)
	}()
	left := 0
	select {
	case <-gone:
	case <-ctx.Done():
		left = h.servers.xds.Streams()
	case <-h.signals.end:
		left = h.servers.xds.Streams()
		h.log.Info("second signal: shutting down at once")
	}
	cancel()
	<-gone
	h.log.Info("shut down", "after", time.Since(begin).Round(time.Millisecond), "streams_cut", left)
}
