// Package accesslog makes the access logs of a listener: where they go (a sink, with a
// cluster for each collector), how a log entry is written (a format), and which log
// entries there are (a filter). It checks all that an operator has written against
// what the release of Envoy knows, so that a mistake is a problem and no NACK.
//
// Each row of the table of operators says what a log entry may show of it: redact.go
// hides what an untrusted downstream claims, and what the settings keep out of logs.
package accesslog

import (
	"fmt"
	"maps"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"

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

// For returns the logs of the filter chains for untrusted downstreams, or of those
// for all others.
func (l Logs) For(untrusted bool) []*accesslogv3.AccessLog {
	if untrusted {
		return l.UntrustedChains
	}
	return l.FilterChains
}

// add adds the logs to another sink.
func (l *Logs) add(other Logs) {
	l.Listener = append(l.Listener, other.Listener...)
	l.FilterChains = append(l.FilterChains, other.FilterChains...)
	l.UntrustedChains = append(l.UntrustedChains, other.UntrustedChains...)
	l.Collectors = append(l.Collectors, other.Collectors...)
	if l.TokenBuckets == nil {
		l.TokenBuckets = map[string]*typev3.TokenBucket{}
	}
	maps.Copy(l.TokenBuckets, other.TokenBuckets)
}

// sink is where entries go, and how they are written there.
type sink struct {
	settings.Sink
	names    logNames
	byConsul bool // proxy-defaults' own
	format   logFormat
}

// logNames name the loggers of a sink: of entries, and of what was rejected.
type logNames struct{ entries, noChain, rejected string }

var (
	consulNames = logNames{"Consul Listener Filter Log", "Consul Listener Log", "Usher Listener Log"}
	usherNames  = logNames{"Usher Filter Log", "Usher Listener Log", "Usher Listener Log"}
)

// Build makes the access logs. A sink that cannot be built as it is configured is a
// problem and is left out. As with Consul, the listener serves without it.
func Build(k Params) (Logs, []problem.Problem) {
	var all Logs
	var problems []problem.Problem
	there := ""
	add := func(where string, s sink, err error) {
		var logs Logs
		if err == nil {
			logs, err = k.logsTo(s)
		}
		if err != nil {
			problems = append(problems, problem.Problem{Where: where, What: err.Error() + "; until this is mended nothing is logged" + there})
			return
		}
		all.add(logs)
	}
	switch k.Settings.Sinks.Type {
	case settings.SinksCustom:
		there = " there"
		for i, own := range k.Settings.Sinks.Custom {
			s, err := k.ownSink(own)
			add(fmt.Sprintf("%s: usher.access_log.sinks[%d]", k.Where, i), s, err)
		}
	case settings.SinksDefault:
		if k.Consul.Enabled {
			s, err := k.consulSink()
			add(k.consulWhere(), s, err)
		}
	}
	all.NeedsDirectAddress = len(all.FilterChains) > 0 && k.omitsHealthChecks(false)
	return all, problems
}

// consulWhere names the place that says how proxy-defaults' entries look.
func (k Params) consulWhere() string {
	if k.Settings.Format.Type != settings.FormatDefault {
		return k.Where + ": usher.access_log"
	}
	return "config entry proxy-defaults/global: AccessLogs"
}

// consulSink is the sink that proxy-defaults asks for.
func (k Params) consulSink() (sink, error) {
	s := sink{names: consulNames, byConsul: true}
	switch k.Consul.Type {
	case "", "stdout":
		s.Type = settings.SinkStdout
	case "stderr":
		s.Type = settings.SinkStderr
	case "file":
		s.Type, s.Path = settings.SinkFile, k.Consul.Path
	default:
		return sink{}, fmt.Errorf("type %q is not allowed; use stdout, stderr or file", k.Consul.Type)
	}
	var err error
	if k.Settings.Format.Type == settings.FormatDefault {
		s.format, err = k.consulFormat()
	} else {
		s.format, err = k.formatOf(k.Settings.Format)
	}
	return s, err
}

// ownSink is a sink that the listener's settings ask for.
func (k Params) ownSink(own settings.Sink) (sink, error) {
	s := sink{Sink: own, names: usherNames}
	if own.Type == settings.SinkGRPC {
		if k.Settings.Redacts() {
			return sink{}, fmt.Errorf(`type %q sends what Envoy has, and nothing can be redacted; use type %q, or redact nothing`, own.Type, settings.SinkOTLP)
		}
		return s, nil
	}
	format := own.Format
	if format.Type == "" {
		format = k.Settings.Format
	}
	var err error
	s.format, err = k.formatOf(format)
	return s, err
}

// logsTo makes the loggers of a sink.
func (k Params) logsTo(s sink) (Logs, error) {
	var logs Logs
	filter, err := k.entryFilter(false)
	if err != nil {
		return Logs{}, err
	}
	if logs.FilterChains, err = k.logTo(s, logEntry{name: s.names.entries, format: s.format, http: k.HTTP, filter: filter}); err != nil {
		return Logs{}, err
	}
	if k.HasUntrusted {
		// A log line of a peer that is not believed has the peer's own address, under
		// whatever name the format asks for the client's.
		if filter, err = k.entryFilter(true); err != nil {
			return Logs{}, err
		}
		own := logEntry{name: s.names.entries, format: withoutClaims(s.format, k.Envoy), http: k.HTTP, filter: filter, untrusted: true}
		if logs.UntrustedChains, err = k.logTo(s, own); err != nil {
			return Logs{}, err
		}
	}
	limit, err := k.limitOf(s)
	if err != nil {
		return Logs{}, err
	}
	rejections, err := k.rejections(s, limit.filter)
	if err != nil {
		return Logs{}, err
	}
	if len(rejections) > 0 {
		logs.TokenBuckets = limit.buckets
	}
	for _, r := range rejections {
		log, err := k.logTo(s, r)
		if err != nil {
			return Logs{}, err
		}
		logs.Listener = append(logs.Listener, log...)
	}
	if s.Address.Port != 0 {
		collector, err := collectorCluster(collectorKey{address: s.Address, tls: s.TLS})
		if err != nil {
			return Logs{}, err
		}
		logs.Collectors = []*clusterv3.Cluster{collector}
	}
	return logs, nil
}

// entry is one kind of entries: their format, and which they are.
type logEntry struct {
	name      string
	format    logFormat
	filter    *accesslogv3.AccessLogFilter
	http      bool // they are of requests
	untrusted bool // what the PROXY header says is not believed
}

// logTo makes the logger of some entries in a sink.
func (k Params) logTo(s sink, e logEntry) ([]*accesslogv3.AccessLog, error) {
	e.format = k.redacted(e)
	config, err := sinkConfig(k, s, e)
	if err != nil {
		return nil, err
	}
	return []*accesslogv3.AccessLog{logger(e.name, config, e.filter)}, nil
}

func logger(name string, config *anypb.Any, filter *accesslogv3.AccessLogFilter) *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{
		Name:       name,
		Filter:     filter,
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: config},
	}
}
