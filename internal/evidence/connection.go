package evidence

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/settings"
)

// Operators are the operators of Envoy's log formats that not every release has.
type Operators struct {
	DirectLocalAddress     bool // DOWNSTREAM_DIRECT_LOCAL_ADDRESS
	TransportFailureReason bool // DOWNSTREAM_TRANSPORT_FAILURE_REASON
}

// absent is what Envoy writes for a value that there is not.
const absent = "-"

// Format returns the format of the log entry for a connection. Its fields are separated by tabs.
func Format(has Operators) string {
	optional := func(has bool, operator string) string {
		if has {
			return operator
		}
		return absent
	}
	return strings.Join([]string{
		"%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "%DOWNSTREAM_REMOTE_ADDRESS%",
		optional(has.DirectLocalAddress, "%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%"), "%DOWNSTREAM_LOCAL_ADDRESS%",
		"%BYTES_RECEIVED%", "%RESPONSE_FLAGS%", "%FILTER_CHAIN_NAME%",
		optional(has.TransportFailureReason, "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%"), "%DURATION%",
	}, "\t")
}

// connection is the log entry of one connection.
type connection struct {
	peer             netip.Addr // the connecting address
	namesAddresses   bool       // a PROXY header named other addresses than the connection's
	sentData         bool
	hasChain         bool // it reached a filter chain
	protocolError    bool // what came was not HTTP
	transportFailure string
	duration         time.Duration // zero if it is not known
}

// parseConnection reads a log entry that was written by Format. It reports false for any other text.
func parseConnection(l Listener, text string) (connection, bool) {
	fields := strings.Split(text, "\t")
	if len(fields) != 9 {
		return connection{}, false
	}
	direct, remote, directLocal, local := fields[0], fields[1], fields[2], fields[3]
	peer, err := netip.ParseAddrPort(direct)
	if err != nil {
		return connection{}, false
	}
	flags := strings.Split(fields[5], ",")
	c := connection{
		peer:           peer.Addr().Unmap().WithZone(""),
		namesAddresses: remote != direct || !sameLocal(l, directLocal, local),
		sentData:       fields[4] != "0" && fields[4] != absent,
		hasChain:       fields[6] != absent,
	}
	for _, flag := range flags {
		c.protocolError = c.protocolError || flag == "DPE"
	}
	if fields[7] != absent {
		c.transportFailure = fields[7]
	}
	if ms, err := strconv.ParseUint(fields[8], 10, 32); err == nil {
		c.duration = time.Duration(ms) * time.Millisecond
	}
	return c, true
}

// sameLocal reports whether the connection's local address is the listener's. A header names the balancer's instead.
// An Envoy that does not know the direct one still shows that the port is another one.
func sameLocal(l Listener, direct, local string) bool {
	if direct != absent {
		return local == direct
	}
	address, err := netip.ParseAddrPort(local)
	return err != nil || int(address.Port()) == l.Port
}

// classify returns the type of a connection, as far as it shows by itself. mayBeCheck means that it is Refused only if
// it is no health check: a strict listener's log shows neither of them any data.
func (c connection) classify(l Listener) (t Type, mayBeCheck bool) {
	switch {
	case l.Mode == settings.Off && c.looksMalformed():
		return Malformed, false
	case l.Mode == settings.Off && c.sentData:
		return WithoutHeader, false
	case l.Mode == settings.Off:
		return Unknown, false
	case !c.counts(l):
		return c.untrusted(l), false
	case c.namesAddresses:
		return WithHeader, false
	case l.Mode == settings.Strict && !c.hasChain:
		return Refused, true
	case l.Mode == settings.Permissive && c.hasChain && c.sentData:
		return WithoutHeader, false
	}
	return Unknown, false
}

// counts reports whether the listener believes headers of the connection's address. A listener that is off looks for none.
func (c connection) counts(l Listener) bool {
	return l.Mode == settings.Off || trusts(l.Trusted, c.peer)
}

// untrusted returns the type of a connection that does not count: a health check by TCP shows nothing. A strict listener's
// log shows no data of other connections either.
func (c connection) untrusted(l Listener) Type {
	switch {
	case c.namesAddresses:
		return UntrustedHeader
	case l.Mode == settings.Permissive && !c.sentData:
		return Unknown
	}
	return Untrusted
}

// looksMalformed reports whether the first data was neither HTTP nor a TLS handshake. BoringSSL has these names for
// the beginning of a PROXY header.
func (c connection) looksMalformed() bool {
	return c.protocolError ||
		strings.Contains(c.transportFailure, "WRONG_VERSION_NUMBER") || strings.Contains(c.transportFailure, "HTTPS_PROXY_REQUEST")
}

func trusts(trusted []netip.Prefix, a netip.Addr) bool {
	for _, p := range trusted {
		if p.Contains(a) {
			return true
		}
	}
	return len(trusted) == 0
}
