package listeners

import (
	"strconv"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/usherproxy/usher/internal/settings"
)

const (
	portHeader = "x-forwarded-port"
	// portOperator is the port of the connection, or that of the PROXY header's destination.
	portOperator = "%DOWNSTREAM_LOCAL_PORT%"
)

// forwardedPort returns the changes of X-Forwarded-Port. A PROXY header of an untrusted downstream does not count, and
// neither does what its requests say: its port is the listener's, which is known here. With client_address.trusted_cidrs,
// only what those proxies say is trusted.
func (l *listenerParams) forwardedPort(from downstreams) []*mutationv3.HeaderMutation {
	switch by := l.settings.ClientAddress.ForwardedPort; {
	case by == settings.ForwardedPortDefault:
		return nil
	case from.untrusted():
		return []*mutationv3.HeaderMutation{setHeader(portHeader, strconv.Itoa(l.port.number))}
	case by == settings.ForwardedPortTrust && l.believes(from):
		return []*mutationv3.HeaderMutation{changeHeader(portHeader, portOperator, corev3.HeaderValueOption_ADD_IF_ABSENT)}
	default:
		return []*mutationv3.HeaderMutation{setHeader(portHeader, portOperator)}
	}
}
