package listeners

import (
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/usherproxy/usher/internal/accesslog"
	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/settings"
)

// reporter is how an Envoy reports the connections to its listeners. It reports none without a key or a cluster.
type reporter struct {
	key     evidence.Key
	cluster string
}

// report is what a listener reports to Usher: its connections, with a signature that only its own configuration has.
// The zero value: nothing.
func (l *listenerParams) report() accesslog.Report {
	reports := l.instance.reports
	if reports.key.IsZero() || reports.cluster == "" {
		return accesslog.Report{}
	}
	in, proxy := l.instance.registered, l.settings.ProxyProtocol
	about := evidence.Listener{
		Gateway: l.port.gateway, Kubernetes: in.Kubernetes, Port: l.port.number, Mode: proxy.Mode,
		FollowsService: l.input.snapshot.FollowsService(in, l.port.number),
	}
	if hasUntrusted(proxy) || about.FollowsService && l.canBelieveTrusted() {
		about.Trusted = proxy.TrustedCIDRs
	}
	listener, signature, ok := reports.key.Metadata(about)
	if !ok && proxy.Mode == settings.Off { // what is off does not need the list to report
		about.Trusted = nil
		listener, signature, ok = reports.key.Metadata(about)
	}
	if !ok {
		return accesslog.Report{}
	}
	return accesslog.Report{
		Name:    strconv.Itoa(l.port.number),
		Cluster: reports.cluster,
		Format: evidence.Format(evidence.Operators{
			DirectLocalAddress:     accesslog.Supports(l.input.capabilities, "DOWNSTREAM_DIRECT_LOCAL_ADDRESS"),
			TransportFailureReason: accesslog.Supports(l.input.capabilities, "DOWNSTREAM_TRANSPORT_FAILURE_REASON"),
		}),
		Metadata: []*corev3.HeaderValue{
			{Key: evidence.ListenerKey, Value: listener}, {Key: evidence.SignatureKey, Value: signature},
		},
	}
}

// canBelieveTrusted reports whether a listener that is off could believe the headers of trusted_cidrs instead.
func (l listenerParams) canBelieveTrusted() bool {
	l.settings.ProxyProtocol.Mode = settings.Permissive
	return hasUntrusted(l.settings.ProxyProtocol) && l.check() == nil
}
