package configdir

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"sync"

	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// Options are what a Source needs beside its directory.
type Options struct {
	Logger     *slog.Logger // nil discards
	Datacenter string       // "" means dc1
	// Report is called by Run with all that is wrong whenever that changes,
	// also with nothing; nil does without.
	Report func([]problem.Problem)
}

// Source gives the snapshots of the gateways in a directory. Load reads it,
// Run follows it, and any number of Watch calls deliver what was read.
type Source struct {
	dir    string
	logger *slog.Logger
	report func([]problem.Problem)
	again  filewatch.Trigger

	mu   sync.Mutex
	view view
}

// view is what watchers see: the last good content, what is wrong with a
// later one, and a channel that is closed when the next view is there.
type view struct {
	content *content
	loaded  bool // content was read; false before the first good one
	broken  Problems
	next    chan struct{}
}

// NewSource makes a source of the files in dir. It reads nothing yet.
func NewSource(dir string, o Options) *Source {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Datacenter == "" {
		o.Datacenter = "dc1"
	}
	if o.Report == nil {
		o.Report = func([]problem.Problem) {}
	}
	return &Source{
		dir:    filepath.Clean(dir),
		logger: o.Logger,
		report: o.Report,
		again:  filewatch.NewTrigger(),
		view:   view{content: &content{datacenter: o.Datacenter}, next: make(chan struct{})},
	}
}

// Load reads the directory for the first time, before Run. Everything that is
// wrong is in its error (Problems), a line each. Nothing is taken then.
func (s *Source) Load() error {
	v := s.now()
	c := readConfig(s.dir)
	if len(c.problems) > 0 {
		s.show(view{content: v.content, broken: c.problems})
		return c.problems
	}
	next := build(c, v.content)
	if len(next.settings) > 0 {
		s.show(view{content: v.content, broken: next.settings})
		return next.settings
	}
	s.show(view{content: next, loaded: true})
	return nil
}

// Run follows the directory until ctx ends, and then gives nil. A change that
// is wrong is reported and shown in the snapshots' problems, and the last good
// content stays. Run's error is that the system cannot watch directories.
func (s *Source) Run(ctx context.Context) error {
	filewatch.Dir(s.dir, filewatch.Options{Read: s.read, Broken: s.broken, Logger: s.logger, Again: s.again}).Run(ctx)
	return nil
}

// Reload makes Run read the directory at once, as it does after a change.
func (s *Source) Reload() { s.again.Fire() }

// read reads the directory again. It returns false if something in it is wrong.
// Only when that is sure, it is reported.
func (s *Source) read(sure bool) bool {
	v := s.now()
	c := readConfig(s.dir)
	if len(c.problems) > 0 {
		if sure {
			s.keep(c.problems)
		}
		return false
	}
	next := build(c, v.content)
	if len(v.broken) > 0 || !slices.Equal(next.settings, v.content.settings) {
		s.report(next.settings)
	}
	if v.loaded && len(v.broken) == 0 && reflect.DeepEqual(next, v.content) {
		return true
	}
	s.logger.Info("config files read", "dir", s.dir, "gateways", len(next.current))
	s.show(view{content: next, loaded: true})
	return true
}

// broken reports a panic while the directory was read.
func (s *Source) broken(err error) {
	s.keep(Problems{{Where: s.dir, What: err.Error() + "; what the files last said stays"}})
}

// keep shows the problems, and keeps the last good content of the files.
func (s *Source) keep(problems Problems) {
	v := s.now()
	if !slices.Equal(problems, v.broken) {
		s.report(problems)
		s.show(view{content: v.content, loaded: v.loaded, broken: problems})
	}
}

func (s *Source) now() view {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view
}

// show replaces the view and wakes the watchers of the one before.
func (s *Source) show(v view) {
	v.next = make(chan struct{})
	s.mu.Lock()
	old := s.view
	s.view = v
	s.mu.Unlock()
	close(old.next)
}

// Watch calls put with a snapshot of the gateway at once, as soon as the
// directory has been read, and again at every change of it, until ctx ends;
// then it gives nil. put must not block. A gateway that neither a config
// entry nor a service definition names has no instances.
func (s *Source) Watch(ctx context.Context, id gateway.ID, put func(*gateway.Snapshot)) error {
	var last *gateway.Snapshot
	for {
		v := s.now()
		if v.loaded {
			if next := v.snapshot(id, s.dir); last == nil || !reflect.DeepEqual(last, next) {
				put(next)
				last = next
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-v.next:
		}
	}
}

// snapshot gives what the view shows of a gateway.
func (v view) snapshot(id gateway.ID, dir string) *gateway.Snapshot {
	var s gateway.Snapshot
	known := gateway.OmitDefault(id.Namespace) == "" && gateway.OmitDefault(id.Partition) == ""
	if known && v.content.gateways[id.Name] != nil {
		s = *v.content.gateways[id.Name]
	} else {
		s = gateway.Snapshot{Datacenter: v.content.datacenter, Plain: true, Problems: []problem.Problem{{
			Where: dir,
			What:  "no ingress-gateway entry is called " + id.String() + "; add one, or correct the gateway's name in its Envoy's bootstrap",
		}}}
	}
	s.ID = id
	s.Problems = slices.Concat(s.Problems, v.broken)
	return &s
}

// Ready says why no content is there; nil once the directory was read well.
func (s *Source) Ready() error {
	v := s.now()
	switch {
	case v.loaded:
		return nil
	case len(v.broken) > 0:
		return v.broken
	}
	return errors.New("the config files of " + s.dir + " are not read yet")
}

// Warning gives "": what can be mended in files is reported as problems.
func (s *Source) Warning() string { return "" }

// Gateways lists the gateways that an ingress-gateway config entry or a
// service definition names, sorted.
func (s *Source) Gateways() []gateway.ID {
	return slices.Clone(s.now().content.current)
}
