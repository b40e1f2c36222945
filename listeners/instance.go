package listeners

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
)

// instance is what listeners depend on of one instance of the gateway.
type instance struct {
	registered   *gateway.Instance
	addresses    []string // bound by each listener, without duplicates
	maxHeadersKB uint32   // 0: Envoy's default
}

func instanceOf(s *gateway.Snapshot, in *gateway.Instance) instance {
	return instance{
		registered:   in,
		addresses:    bindAddresses(in, s.DualStack),
		maxHeadersKB: in.Config.MaxRequestHeadersKB,
	}
}

// fetchTimeoutOf reads xds_fetch_timeout_ms; Consul ignores a negative one.
func fetchTimeoutOf(in *gateway.Instance) envoy.FetchTimeout {
	if t := in.Config.FetchTimeout; t != nil && *t >= 0 {
		return envoy.FetchTimeout{IsSet: true, Duration: *t}
	}
	return envoy.FetchTimeout{}
}

// bindAddresses returns the addresses that every listener of an instance binds, sorted and without duplicates: the
// instance's own unless it says not to, its tagged ones if it says so, and the ones that it lists
// (https://developer.hashicorp.com/consul/docs/reference/proxy/envoy#gateway-options). Their ports are not those of
// the gateway's listeners and have no meaning.
func bindAddresses(in *gateway.Instance, dualStack bool) []string {
	all, loopback := "0.0.0.0", "127.0.0.1"
	if dualStack {
		all, loopback = "::", "::1"
	}
	var addresses []string
	if !in.Config.NoDefaultBind {
		addresses = append(addresses, cmp.Or(in.Address, all))
	}
	if in.Config.BindTaggedAddresses {
		for _, a := range in.TaggedAddresses {
			addresses = append(addresses, cmp.Or(a.Address, loopback))
		}
	}
	for _, a := range in.Config.BindAddresses {
		addresses = append(addresses, cmp.Or(a.Address, loopback))
	}
	slices.Sort(addresses)
	return slices.Compact(addresses)
}

// checkBindAddress returns why a listener cannot bind an address. Envoy resolves no names for a listener.
func checkBindAddress(address string) error {
	if _, err := netip.ParseAddr(address); err != nil {
		return fmt.Errorf("address %q of the gateway's registration is not an IP address; "+
			"register the gateway with one, or set envoy_gateway_no_default_bind and envoy_gateway_bind_addresses", address)
	}
	return nil
}

// listenerName returns Consul's name of a port's listener on an address. The address is part of it because Envoy
// cannot give a listener another address.
func listenerName(p port, address string) string {
	head := p.protocol
	if !p.http() && len(p.services) > 0 {
		head = displayName(p.services[0].service.Service)
	}
	return head + ":" + net.JoinHostPort(address, strconv.Itoa(p.number))
}

// listenerNames returns the names of a port's listeners: one for each address, and that of the loopback listener
// which a tcp port may have.
func listenerNames(in instance, p port) []string {
	var names []string
	for _, a := range in.addresses {
		names = append(names, listenerName(p, a))
	}
	if !p.http() {
		names = append(names, loopbackName(p))
	}
	return names
}
