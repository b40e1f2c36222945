// Package accesslog makes the access logs of a listener: where they go (a sink, with a cluster for each collector),
// how a log entry is written (a format), and which log entries there are (a filter). It checks all that an administrator
// has written against what the release of Envoy knows, so that a mistake is a problem and no NACK.
//
// Each row of the table of operators says what a log entry may show of it: redact.go hides what an untrusted
// downstream claims, and what the settings keep out of logs. Headers of config entries have the same operators;
// CheckHeader and HeaderWithoutClaims treat them as formats.
package accesslog

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// Params are everything that the access logs of a listener depend on.
type Params struct {
	Consul   gateway.AccessLogs // of proxy-defaults
	Settings settings.AccessLog
	Gateway  gateway.ID
	Where    string // names the listener in problems
	// Place returns where a setting of the listener, such as "access_log.format", is set.
	Place    func(setting string) settings.Place
	ConsulAt problem.Position // where Consul is; the zero value if it is not in a file
	Envoy    envoy.Capabilities

	HTTP         bool // the listener has requests; else it is tcp
	TLS          bool
	MatchesSNI   bool // a filter chain is chosen by server name
	TLSInspector bool // Envoy reads the server name before the TLS handshake

	ProxyProtocol      bool
	Strict             bool     // every connection needs a PROXY header
	HasUntrusted       bool     // only the PROXY headers of trusted_cidrs count
	ClientAddressKnown bool     // PROXY headers or X-Forwarded-For name the client
	TLVs               []string // the names of those that are logged
	Report             Report
}

// Logs are the access logs of a listener. The zero value logs nothing.
type Logs struct {
	Listener        []*accesslogv3.AccessLog // of connections that were rejected
	FilterChains    []*accesslogv3.AccessLog // of requests, or of connections on tcp
	UntrustedChains []*accesslogv3.AccessLog // the same, of untrusted downstreams
	// NeedsDirectAddress: FilterChains read envoy.DirectAddressState.
	NeedsDirectAddress bool

	Collectors   []*clusterv3.Cluster
	TokenBuckets map[string]*typev3.TokenBucket
}

// For returns the logs of the filter chains for untrusted downstreams, or of those for all others.
func (l Logs) For(untrusted bool) []*accesslogv3.AccessLog {
	if untrusted {
		return l.UntrustedChains
	}
	return l.FilterChains
}

// sink is where log entries go, and how they are written there.
type sink struct {
	settings.Sink
	names    loggerNames
	byConsul bool // proxy-defaults' own
	format   logFormat
}

// loggerNames are the names of a sink's loggers in Envoy.
type loggerNames struct{ filterChain, noChain, rejected string }

var (
	consulNames = loggerNames{"Consul Listener Filter Log", "Consul Listener Log", "Usher Listener Log"}
	usherNames  = loggerNames{"Usher Filter Log", "Usher Listener Log", "Usher Listener Log"}
)

// Build makes the access logs. A sink that cannot be built as it is configured is a problem and is left out. As with
// Consul, the listener serves without it.
func Build(p Params) (Logs, []problem.Problem) {
	all := Logs{TokenBuckets: map[string]*typev3.TokenBucket{}}
	var problems []problem.Problem
	add := func(place func(what string) problem.Problem, scope string, s sink, err error) {
		if err == nil {
			err = p.addSink(&all, s)
		}
		if err != nil {
			problems = append(problems, p.problemOf(err, place, "; nothing is logged"+scope+" until this is corrected"))
		}
	}
	switch p.Settings.Sinks.Type {
	case settings.SinksCustom:
		for i, custom := range p.Settings.Sinks.Custom {
			s, err := p.customSink(custom)
			add(p.problemAt(p.sinkSetting(i, custom)), " there", s, err)
		}
	case settings.SinksDefault:
		if p.Consul.Enabled {
			s, err := p.consulSink()
			add(p.consulProblem, "", s, err)
		}
	}
	all.NeedsDirectAddress = len(all.FilterChains) > 0 && p.omitsHealthChecks()
	if p.Report.Cluster != "" {
		if err := p.addReport(&all); err != nil {
			problems = append(problems, problem.Problem{
				Where: p.Where, What: err.Error() + "; its connections are not reported: a bug in Usher; please report it",
			})
		}
	}
	return all, problems
}

// problemOf returns the problem of a sink that cannot be built. place makes a problem where the sink is, unless the error
// belongs to another setting.
func (p Params) problemOf(err error, place func(what string) problem.Problem, consequence string) problem.Problem {
	text := err.Error()
	if refused, ok := errors.AsType[*settings.RefusedError](err); ok {
		place, text = p.problemAt(refused.Setting), refused.Reason
	}
	found := place(text + consequence)
	found.OfEnvoy = errors.As(err, new(tooOldError))
	return found
}

// tooOldError is an error of a setting that newer Envoys know.
type tooOldError struct{ error }

func (e tooOldError) Unwrap() error { return e.error }

// problemAt returns a function for problems of a setting.
func (p Params) problemAt(setting string) func(what string) problem.Problem {
	if place := p.Place(setting); !place.IsZero() {
		return place.Problem
	}
	return func(what string) problem.Problem {
		return problem.Problem{Where: p.Where + ": " + settings.Key + "." + setting, What: what}
	}
}

func refuse(setting, reason string) error {
	return &settings.RefusedError{Setting: "access_log." + setting, Reason: reason}
}

// sinkSetting returns the setting that has the format of a custom sink, or the sink itself.
func (p Params) sinkSetting(i int, custom settings.Sink) string {
	if custom.Format.Type == "" && custom.Type != settings.SinkGRPC && p.Settings.Format.Type != settings.FormatDefault {
		return "access_log.format"
	}
	return fmt.Sprintf("access_log.sinks[%d]", i)
}

// consulProblem returns a problem at the place that configures the format of proxy-defaults' sink.
func (p Params) consulProblem(what string) problem.Problem {
	if p.Settings.Format.Type != settings.FormatDefault {
		return p.problemAt("access_log.format")(what)
	}
	at := "config entry proxy-defaults/global"
	if p.ConsulAt != (problem.Position{}) {
		at = p.ConsulAt.String()
	}
	return problem.Problem{Where: at + ": AccessLogs", At: p.ConsulAt, What: what}
}

// consulSink is the sink of proxy-defaults.
func (p Params) consulSink() (sink, error) {
	s := sink{names: consulNames, byConsul: true}
	switch p.Consul.Type {
	case "", "stdout":
		s.Type = settings.SinkStdout
	case "stderr":
		s.Type = settings.SinkStderr
	case "file":
		if p.Consul.Path == "" {
			return sink{}, errors.New(`type "file" needs a Path; add it`)
		}
		s.Type, s.Path = settings.SinkFile, p.Consul.Path
	default:
		return sink{}, fmt.Errorf("type %q is not allowed; use stdout, stderr or file", p.Consul.Type)
	}
	var err error
	if p.Settings.Format.Type == settings.FormatDefault {
		s.format, err = p.consulFormat()
	} else {
		s.format, err = p.formatOf(p.Settings.Format)
	}
	return s, err
}

// customSink is a sink of the listener's settings.
func (p Params) customSink(custom settings.Sink) (sink, error) {
	s := sink{Sink: custom, names: usherNames}
	if custom.Type == settings.SinkGRPC {
		if p.Settings.Redacts() {
			return sink{}, fmt.Errorf(`type %q cannot be redacted; use type %q, or remove the redact settings`, custom.Type, settings.SinkOTLP)
		}
		return s, nil
	}
	format := custom.Format
	if format.Type == "" {
		format = p.Settings.Format
	}
	var err error
	s.format, err = p.formatOf(format)
	return s, err
}

// logEntry is one type of log entries.
type logEntry struct {
	name      string // of the logger
	format    logFormat
	filter    *accesslogv3.AccessLogFilter
	http      bool // of requests
	untrusted bool // of untrusted downstreams
}

// addSink adds the logs to a sink. With an error, it adds nothing.
func (p Params) addSink(all *Logs, s sink) error {
	logs := *all
	entries, err := p.chainEntries(s)
	if err != nil {
		return err
	}
	limit, buckets, err := p.rateLimit(s)
	if err != nil {
		return err
	}
	rejections, err := p.rejections(s, limit)
	if err != nil {
		return err
	}
	for i, e := range slices.Concat(entries, rejections) {
		log, err := p.logger(s, e)
		switch {
		case err != nil:
			return err
		case i >= len(entries):
			logs.Listener = append(logs.Listener, log)
		case e.untrusted:
			logs.UntrustedChains = append(logs.UntrustedChains, log)
		default:
			logs.FilterChains = append(logs.FilterChains, log)
		}
	}
	if s.Address.Port != 0 {
		collector, err := collectorCluster(s.Sink)
		if err != nil {
			return err
		}
		logs.Collectors = append(logs.Collectors, collector)
	}
	*all = logs
	if len(rejections) > 0 {
		maps.Copy(all.TokenBuckets, buckets)
	}
	return nil
}

// chainEntries are the log entries of filter chains.
func (p Params) chainEntries(s sink) ([]logEntry, error) {
	selected, err := p.selected()
	if err != nil {
		return nil, err
	}
	noHealthCheck, err := p.noHealthCheck()
	if err != nil {
		return nil, err
	}
	e := logEntry{name: s.names.filterChain, http: p.HTTP}
	e.format, e.filter = s.format, allOf(selected, p.sampled(), noHealthCheck)
	entries := []logEntry{e}
	if p.HasUntrusted {
		if p.choosesByClaims() {
			selected = nil
		}
		e.format, e.filter, e.untrusted = withoutClaims(s.format, p.Envoy), allOf(selected, p.sampled()), true
		entries = append(entries, e)
	}
	return entries, nil
}

// logger makes the logger that writes a type of log entries to a sink.
func (p Params) logger(s sink, e logEntry) (*accesslogv3.AccessLog, error) {
	e.format = p.redacted(e)
	config, err := p.sinkConfig(s, e)
	if err != nil {
		return nil, err
	}
	return envoy.Extension(&accesslogv3.AccessLog{Filter: e.filter}, e.name, config)
}
