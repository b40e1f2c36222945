package listeners

import (
	"fmt"
	"maps"
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// accessLogs are the logs of a listener. The zero value logs nothing.
type accessLogs struct {
	listener   []*accesslogv3.AccessLog // of connections that were rejected
	filter     []*accesslogv3.AccessLog // of requests, or of connections on tcp
	untrusted  []*accesslogv3.AccessLog // the same, of peers whose headers are not believed
	collectors []*clusterv3.Cluster     // that entries are sent to
	buckets    map[string]*typev3.TokenBucket
}

// of gives the logs of the filter chains for some peers.
func (l accessLogs) of(who peers) []*accesslogv3.AccessLog {
	if who == untrusted {
		return l.untrusted
	}
	return l.filter
}

// with gives the logs to all sinks of both.
func (l accessLogs) with(other accessLogs) accessLogs {
	buckets := map[string]*typev3.TokenBucket{}
	maps.Copy(buckets, l.buckets)
	maps.Copy(buckets, other.buckets)
	return accessLogs{
		buckets:    buckets,
		listener:   slices.Concat(l.listener, other.listener),
		filter:     slices.Concat(l.filter, other.filter),
		untrusted:  slices.Concat(l.untrusted, other.untrusted),
		collectors: slices.Concat(l.collectors, other.collectors),
	}
}

// accessLogKey is everything that the access logs follow from.
type accessLogKey struct {
	consul  gateway.AccessLogs
	policy  settings.AccessLog
	gateway gateway.ID
	where   string // of the listener, in problems
	http    bool
	tls     bool
	bySNI   bool // a chain is chosen by server name
	looks   bool // Envoy looks for the server name before the TLS handshake
	told    bool // somebody in front of the gateway says who the client is
	proxied bool // with PROXY headers
	strict  bool // and not without
	limited bool // and not everybody's are believed
	tlvs    []settings.TLV
	envoy   envoy.Capabilities
}

func accessLogKeyOf(l listening) accessLogKey {
	proxy := l.policy.ProxyProtocol
	return accessLogKey{
		consul:  l.in.registered.AccessLogs,
		policy:  l.policy.AccessLog,
		gateway: l.port.gateway,
		where:   l.port.where(),
		http:    l.port.http(),
		tls:     l.speaksTLS(),
		bySNI:   l.choosesByServerName(),
		looks:   l.looksForServerName(),
		told:    proxy.On() || l.policy.ClientAddress.On(),
		proxied: proxy.On(),
		strict:  proxy.Mode == settings.Strict,
		limited: proxy.On() && !proxy.TrustsAll(),
		tlvs:    l.tlvs(),
		envoy:   l.env.envoy,
	}
}

// sink is where entries go, and how they are written there.
type sink struct {
	settings.Sink
	names    logNames
	byConsul bool // proxy-defaults' own
	format   entryFormat
}

// logNames name the loggers of a sink: of entries, and of what was rejected.
type logNames struct{ entries, noChain, rejected string }

var (
	consulNames = logNames{"Consul Listener Filter Log", "Consul Listener Log", "Usher Listener Log"}
	usherNames  = logNames{"Usher Filter Log", "Usher Listener Log", "Usher Listener Log"}
)

// accessLogsOf makes the access logs. A sink that cannot be had as it is asked
// for is a problem and stays away; it does not keep a listener from serving, as
// with Consul.
func accessLogsOf(k accessLogKey) (accessLogs, []problem.Problem) {
	var all accessLogs
	var problems []problem.Problem
	there := ""
	add := func(where string, s sink, err error) {
		var logs accessLogs
		if err == nil {
			logs, err = k.logsTo(s)
		}
		if err != nil {
			problems = append(problems, problem.Problem{Where: where, What: err.Error() + "; until this is mended nothing is logged" + there})
			return
		}
		all = all.with(logs)
	}
	switch k.policy.Sinks.By {
	case settings.SinksOwn:
		there = " there"
		for i, own := range k.policy.Sinks.Own {
			s, err := k.ownSink(own)
			add(fmt.Sprintf("%s: usher.access_log.sinks[%d]", k.where, i), s, err)
		}
	case settings.SinksDefault:
		if k.consul.Enabled {
			s, err := k.consulSink()
			add(k.consulWhere(), s, err)
		}
	}
	return all, problems
}

// consulWhere names the place that says how proxy-defaults' entries look.
func (k accessLogKey) consulWhere() string {
	if k.policy.Format.By != settings.FormatDefault {
		return k.where + ": usher.access_log"
	}
	return "config entry proxy-defaults/global: AccessLogs"
}

// consulSink is the sink that proxy-defaults asks for.
func (k accessLogKey) consulSink() (sink, error) {
	s := sink{names: consulNames, byConsul: true}
	switch k.consul.Type {
	case "", "stdout":
		s.Type = settings.SinkStdout
	case "stderr":
		s.Type = settings.SinkStderr
	case "file":
		s.Type, s.Path = settings.SinkFile, k.consul.Path
	default:
		return sink{}, fmt.Errorf("type %q is not allowed; use stdout, stderr or file", k.consul.Type)
	}
	var err error
	if k.policy.Format.By == settings.FormatDefault {
		s.format, err = k.consulFormat()
	} else {
		s.format, err = k.formatOf(k.policy.Format)
	}
	return s, err
}

// ownSink is a sink that the listener's settings ask for.
func (k accessLogKey) ownSink(own settings.Sink) (sink, error) {
	s := sink{Sink: own, names: usherNames}
	if own.Type == settings.SinkGRPC {
		if k.policy.Redacts() {
			return sink{}, fmt.Errorf(`type %q sends what Envoy has, and nothing can be redacted; use type %q, or redact nothing`, own.Type, settings.SinkOTLP)
		}
		return s, nil
	}
	format := own.Format
	if format.By == "" {
		format = k.policy.Format
	}
	var err error
	s.format, err = k.formatOf(format)
	return s, err
}

// logsTo makes the loggers of a sink.
func (k accessLogKey) logsTo(s sink) (accessLogs, error) {
	var logs accessLogs
	filter, err := k.entryFilter(anybody)
	if err != nil {
		return accessLogs{}, err
	}
	if logs.filter, err = k.logTo(s, entry{name: s.names.entries, format: s.format, http: k.http, filter: filter}); err != nil {
		return accessLogs{}, err
	}
	if k.limited {
		// A log line of a peer that is not believed has the peer's own address, under
		// whatever name the format asks for the client's.
		if filter, err = k.entryFilter(untrusted); err != nil {
			return accessLogs{}, err
		}
		own := entry{name: s.names.entries, format: ownAddresses(s.format, k.envoy), http: k.http, filter: filter, unbelieved: true}
		if logs.untrusted, err = k.logTo(s, own); err != nil {
			return accessLogs{}, err
		}
	}
	limit, err := k.limitOf(s)
	if err != nil {
		return accessLogs{}, err
	}
	rejections, err := k.rejections(s, limit.filter)
	if err != nil {
		return accessLogs{}, err
	}
	if len(rejections) > 0 {
		logs.buckets = limit.buckets
	}
	for _, r := range rejections {
		log, err := k.logTo(s, r)
		if err != nil {
			return accessLogs{}, err
		}
		logs.listener = append(logs.listener, log...)
	}
	if s.Address.Port != 0 {
		collector, err := collectorCluster(collectorKey{address: s.Address, tls: s.TLS})
		if err != nil {
			return accessLogs{}, err
		}
		logs.collectors = []*clusterv3.Cluster{collector}
	}
	return logs, nil
}

// entry is one kind of entries: their format, and which they are.
type entry struct {
	name       string
	format     entryFormat
	filter     *accesslogv3.AccessLogFilter
	http       bool // they are of requests
	unbelieved bool // what the PROXY header says is not believed
}

// logTo makes the logger of some entries in a sink.
func (k accessLogKey) logTo(s sink, e entry) ([]*accesslogv3.AccessLog, error) {
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
