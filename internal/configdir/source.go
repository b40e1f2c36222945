// Package configdir reads gateways from a directory, without a Consul: config entries and service definitions as Consul
// and its Kubernetes resources have them, in *.hcl, *.json, *.yaml and *.yml.
//
//	files ──configtree──> trees with lines ──decode, check──> config ──build──> content ──Watch──> gateway.Snapshot
//
// There is no service mesh in file mode: upstreams are plain, there are no certificates, and no sidecar enforces
// anything. What needs one is a problem with file:line, and never ignored. An unset value (null, 0, "", false, {} and
// [], which Consul prints where nothing was set) may stand anywhere.
//
//	file                       content
//	*.hcl, *.json              one config entry, as `consul config write` takes it, or
//	                           service definitions (service, services) of an agent
//	*.yaml, *.yml              Consul's custom resources, several documents, lists too
//
//	entry                      supported fields
//	ingress-gateway            all but TLS without an SDS certificate
//	proxy-defaults             AccessLogs; of Config: usher, protocol, max_request_headers_kb,
//	                           xds_fetch_timeout_ms, envoy_gateway_{no_default_bind,
//	                           bind_tagged_addresses,bind_addresses}
//	service-defaults           Protocol; MaxRequestHeadersKB of an ingress gateway
//	service-intentions         sources with an action, none with permissions; what no
//	                           intention matches is allowed
//	every other kind           none
//
//	service definition         supported fields
//	plain                      id, name, address (an IP address), port, weights,
//	                           tagged_addresses; every instance counts as passing
//	kind ingress-gateway       id, name, address, port, tagged_addresses, and of
//	                           proxy.config the same as of proxy-defaults' Config
//	both                       tags, meta and enable_tag_override have no effect on a
//	                           gateway in Consul either
//
// The directory counts as a whole: while anything in it is wrong, the last valid content stays in use. Only Usher's own
// settings are apart: each settings.Layer keeps its last valid settings.
package configdir

import (
	"cmp"
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

// Options are what a Source needs besides its directory.
type Options struct {
	Logger     *slog.Logger // nil discards
	Datacenter string       // "" means dc1
	// Report is called by Run with all problems whenever they change, also with none. It may be nil.
	Report func([]problem.Problem)
}

// Source publishes the snapshots of the gateways in a directory. Load reads it, Run watches it, and any number of
// Watch calls deliver the snapshots.
type Source struct {
	dir     string
	options Options
	reload  filewatch.Trigger

	reported []problem.Problem // what Run has reported last; only its goroutine uses it

	mu   sync.Mutex
	view view
}

// view is what watchers see.
type view struct {
	content  *content      // the last valid one
	loaded   bool          // content was read; false before the first good one
	problems Problems      // of a later content
	next     chan struct{} // is closed when there is the next view
}

// NewSource returns a source of the files in dir. It reads nothing yet.
func NewSource(dir string, o Options) *Source {
	if o.Report == nil {
		o.Report = func([]problem.Problem) {}
	}
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	empty := &content{datacenter: cmp.Or(o.Datacenter, "dc1")}
	return &Source{
		dir: filepath.Clean(dir), options: o, reload: filewatch.NewTrigger(),
		view: view{content: empty, next: make(chan struct{})},
	}
}

// Load reads the directory for the first time, before Run. Its error has everything that is wrong (Problems), a line
// each. Then it keeps nothing of the content.
func (s *Source) Load() error {
	v := s.current()
	next, problems := s.read(v)
	if next != nil {
		problems = next.problems
	}
	if len(problems) > 0 {
		s.show(view{content: v.content, problems: problems})
		return problems
	}
	s.show(view{content: next, loaded: true})
	return nil
}

// read reads the directory. The content is nil if there are problems.
func (s *Source) read(v view) (*content, Problems) {
	c := readConfig(s.dir)
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	return build(c, v.content), nil
}

// Run watches the directory until ctx ends, and then returns nil. A bad change is reported and is in the snapshots'
// problems, and the last valid content stays.
func (s *Source) Run(ctx context.Context) error {
	broken := func(err error) {
		s.keep(Problems{{Where: s.dir, What: err.Error() + "; the last valid content stays in use"}})
	}
	filewatch.Dir(s.dir, filewatch.Options{Read: s.update, Broken: broken, Logger: s.options.Logger, Again: s.reload}).Run(ctx)
	return nil
}

// Reload makes Run read the directory at once, as it does after a change.
func (s *Source) Reload() { s.reload.Fire() }

// update reads the directory again and reports whether its files are good. It reports bad ones as problems only when
// they are final.
func (s *Source) update(final bool) bool {
	v := s.current()
	next, problems := s.read(v)
	if next == nil {
		if final {
			s.keep(problems)
		}
		return false
	}
	if found := next.allProblems(); !slices.Equal(found, s.reported) {
		s.report(found)
	}
	if !v.loaded || len(v.problems) > 0 || !reflect.DeepEqual(next, v.content) {
		s.options.Logger.Info("config files read", "dir", s.dir, "gateways", len(next.names))
		s.show(view{content: next, loaded: true})
	}
	return true
}

// keep shows the problems, and keeps the last valid content of the files.
func (s *Source) keep(problems Problems) {
	v := s.current()
	if !slices.Equal(problems, v.problems) {
		s.report(slices.Concat(v.content.allProblems(), problems))
		s.show(view{content: v.content, loaded: v.loaded, problems: problems})
	}
}

func (s *Source) report(problems []problem.Problem) {
	s.reported = problems
	s.options.Report(problems)
}

func (s *Source) current() view {
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

// Watch calls put with a snapshot of the gateway at once, as soon as the directory has been read, and again after every
// change of it. When ctx ends, it returns nil. put must not block. A gateway that neither a config entry nor a service
// definition names has no instances.
func (s *Source) Watch(ctx context.Context, id gateway.ID, put func(*gateway.Snapshot)) error {
	var last *gateway.Snapshot
	for {
		v := s.current()
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

// snapshot returns the snapshot of a gateway.
func (v view) snapshot(id gateway.ID, dir string) *gateway.Snapshot {
	var s gateway.Snapshot
	isDefault := gateway.OmitDefault(id.Namespace) == "" && gateway.OmitDefault(id.Partition) == ""
	if known := v.content.gateways[id.Name]; known != nil && isDefault {
		s = *known
	} else {
		s = gateway.Snapshot{Datacenter: v.content.datacenter, Plain: true}
		addProblem(&s, problem.Position{File: dir}, "there is no ingress-gateway entry %q%s; add one, or correct the gateway's name in its Envoy's bootstrap",
			id.String(), v.content.similar(id.Name))
		s.Problems[0].Severity = problem.Outage // its Envoy gets nothing
	}
	s.ID = id
	s.Problems = slices.Concat(s.Problems, v.problems)
	return &s
}

// WatchNames calls put with the sorted names of the gateways, at once and after every change, until ctx ends. Before the
// directory has been read, and while it is bad, there may be more: put gets nil.
func (s *Source) WatchNames(ctx context.Context, put func([]string)) error {
	for {
		v := s.current()
		if !v.loaded || len(v.problems) > 0 {
			put(nil)
		} else {
			put(append([]string{}, v.content.names...))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-v.next:
		}
	}
}

// Ready returns why there is no content; nil once the directory was good.
func (s *Source) Ready() error {
	v := s.current()
	switch {
	case v.loaded:
		return nil
	case len(v.problems) > 0:
		return v.problems
	}
	return errors.New("the config files of " + s.dir + " are not read yet")
}

// Warning returns "": everything that can be corrected in files is a problem.
func (s *Source) Warning() string { return "" }

// Gateways returns the gateways that an ingress-gateway config entry or a service definition names, sorted.
func (s *Source) Gateways() []gateway.ID {
	var ids []gateway.ID
	for _, name := range s.current().content.names {
		ids = append(ids, gateway.ID{Name: name})
	}
	return ids
}
