package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/usherproxy/usher/xds"
)

// signals are the signals that usher serve reacts to. The zero value receives none.
type signals struct {
	reload <-chan os.Signal // SIGHUP
	end    <-chan os.Signal // SIGTERM and SIGINT
}

// notify starts to receive signals. The function that it returns stops that. In
// between it ignores SIGPIPE: Usher must not end when the reader of its log does.
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

// followed is a file or directory that Usher reads again at SIGHUP.
type reloadable struct {
	path   string
	reload func()
}

// keeper reacts to signals.
type signalHandler struct {
	log         *slog.Logger
	signals     signals
	reloadables []reloadable
	ready       *readiness
	server      *xds.Server
	drainTime   time.Duration // how long Usher takes to end the streams
}

// run reacts to signals until ctx ends, or until a signal has ended the streams.
func (k *signalHandler) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.signals.reload:
			k.reload()
		case <-k.signals.end:
			k.shutDown(ctx)
			return nil
		}
	}
}

// reload makes Usher read all followed files again. Their readers log what changed.
func (k *signalHandler) reload() {
	paths := []string{}
	for _, f := range k.reloadables {
		f.reload()
		paths = append(paths, f.path)
	}
	if len(paths) == 0 {
		k.log.Info("SIGHUP: usher follows no file, so there is nothing to read again")
		return
	}
	k.log.Info("SIGHUP: files are read again", "paths", paths)
}

// lastWords is how long Envoys may take to close their streams after Usher has ended
// them.
const streamCloseTimeout = time.Second

// shutDown asks Envoys to connect again, a few at a time. It returns when all have
// gone, when their time is over, or at a second signal.
func (k *signalHandler) shutDown(ctx context.Context) {
	k.ready.setDraining()
	k.log.Info("shutting down: Envoys are asked to connect again; send the signal again to end at once", "envoys", k.server.Streams(), "over", k.drainTime)
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, k.drainTime+streamCloseTimeout)
	defer cancel()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		k.server.Drain(ctx, k.drainTime)
	}()
	left := 0
	select {
	case <-gone:
	case <-ctx.Done():
		left = k.server.Streams()
	case <-k.signals.end:
		left = k.server.Streams()
		k.log.Info("shutting down at once: the signal came again")
	}
	cancel()
	<-gone
	k.log.Info("shut down", "after", time.Since(begin).Round(time.Millisecond), "cut_off", left)
}
