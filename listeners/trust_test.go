package listeners

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/settings"
)

// limited reports whether only some peers' headers are believed.
func limited(p settings.Listener) bool {
	return p.ProxyProtocol.Enabled() && !p.ProxyProtocol.TrustsAll()
}

// trustedChain reports whether a chain is for the trusted peers alone.
func trustedChain(chain *listenerv3.FilterChain, p settings.Listener) bool {
	return slices.Equal(prefixes(chain.GetFilterChainMatch().GetDirectSourcePrefixRanges()), p.ProxyProtocol.TrustedCIDRs)
}

func prefixes(ranges []*corev3.CidrRange) (list []netip.Prefix) {
	for _, r := range ranges {
		list = append(list, netip.PrefixFrom(netip.MustParseAddr(r.AddressPrefix), int(r.PrefixLen.GetValue())))
	}
	return list
}

func TestOnlyTrustedPeersGetToAChainThatBelievesThem(t *testing.T) {
	eachListener(t, func(t *testing.T, l *listenerv3.Listener, p settings.Listener) {
		byName := map[string][2]int{} // chains by server names: for trusted peers, and for others
		for _, chain := range l.FilterChains {
			if ofProxies := chain.GetFilterChainMatch().GetSourcePrefixRanges(); len(ofProxies) > 0 {
				if !slices.Equal(prefixes(ofProxies), p.ClientAddress.TrustedCIDRs) || limited(p) && !trustedChain(chain, p) {
					t.Errorf("%s: a chain believes proxies that are not trusted: %v", l.Name, chain.FilterChainMatch)
				}
				continue
			}
			names := strings.Join(chain.GetFilterChainMatch().GetServerNames(), " ")
			count := byName[names]
			switch {
			case trustedChain(chain, p):
				count[0]++
			case len(chain.GetFilterChainMatch().GetDirectSourcePrefixRanges()) == 0:
				count[1]++
			default:
				t.Errorf("%s: a chain is for unexpected downstreams: %v", l.Name, chain.FilterChainMatch)
			}
			byName[names] = count
		}
		want := [2]int{0, 1}
		if limited(p) {
			want = map[settings.Mode][2]int{settings.Strict: {1, 0}, settings.Permissive: {1, 1}}[p.ProxyProtocol.Mode]
		}
		for names, got := range byName {
			if got != want {
				t.Errorf("%s: server names %q have %d chains for trusted peers and %d for others, want %v", l.Name, names, got[0], got[1], want)
			}
		}
	})
}

// claims are the spellings of what a PROXY header says.
var claims = regexp.MustCompile(`DOWNSTREAM_(REMOTE|LOCAL)_(ADDRESS|PORT)|source\.|destination\.|proxy_protocol`)

func TestNoLogShowsWhatAnUntrustedPeerClaims(t *testing.T) {
	eachListener(t, func(t *testing.T, l *listenerv3.Listener, p settings.Listener) {
		if !limited(p) {
			return
		}
		logs := l.AccessLog
		for _, chain := range l.FilterChains {
			if !trustedChain(chain, p) {
				logs = slices.Concat(logs, logsOf(t, chain))
			}
		}
		for _, log := range logs {
			if text := mustJSON(t, log); claims.MatchString(text) {
				t.Errorf("%s: %s shows %q, or is chosen by it: %s", l.Name, log.Name, claims.FindString(text), text)
			}
		}
	})
}

// Headers of users have operators, and each chain has the route configuration that its downstreams get.
func TestNoHeaderShowsWhatAnUntrustedPeerClaims(t *testing.T) {
	eachCompiled(t, func(t *testing.T, c compiled) {
		for l := range c.resources.Listeners.Values() {
			p, gated := policyOf(t, c, l)
			if !gated {
				continue
			}
			for _, chain := range l.FilterChains {
				for _, hcm := range networkFilters[*hcmv3.HttpConnectionManager](t, chain) {
					name := hcm.GetRds().GetRouteConfigName()
					routes := c.resources.Routes.Get(name)
					if routes == nil {
						t.Fatalf("%s: there are no routes %s", l.Name, name)
					}
					untrusted := limited(p) && !trustedChain(chain, p)
					if untrusted {
						wantNoClaim(t, routes)
					}
					if own := strings.TrimPrefix(name, "usher-untrusted:"); !untrusted && own != name {
						t.Errorf("%s: chain %s, for all others, has the routes %s", l.Name, chain.Name, name)
					} else if c.resources.Routes.Get(own) == nil {
						t.Errorf("%s: there are routes %s and none %s", l.Name, name, own)
					}
				}
			}
		}
	})
}

// wantNoClaim wants no header of the routes to show what a PROXY header claims.
func wantNoClaim(t *testing.T, routes *routev3.RouteConfiguration) {
	t.Helper()
	headers := func(where string, lists ...[]*corev3.HeaderValueOption) {
		for _, h := range slices.Concat(lists...) {
			if value := h.GetHeader().GetValue(); claims.MatchString(value) || value == "" {
				t.Errorf("routes %s, %s: the header %s has %q", routes.Name, where, h.GetHeader().GetKey(), value)
			}
		}
	}
	for _, host := range routes.VirtualHosts {
		headers(host.Name, host.RequestHeadersToAdd, host.ResponseHeadersToAdd)
		for _, r := range host.Routes {
			headers(host.Name+"'s route", r.RequestHeadersToAdd, r.ResponseHeadersToAdd)
			for _, split := range r.GetRoute().GetWeightedClusters().GetClusters() {
				headers(host.Name+"'s split", split.RequestHeadersToAdd, split.ResponseHeadersToAdd)
			}
		}
	}
}

func logsOf(t *testing.T, chain *listenerv3.FilterChain) []*accesslogv3.AccessLog {
	t.Helper()
	var logs []*accesslogv3.AccessLog
	for _, hcm := range networkFilters[*hcmv3.HttpConnectionManager](t, chain) {
		logs = append(logs, hcm.AccessLog...)
	}
	for _, proxy := range networkFilters[*tcpproxyv3.TcpProxy](t, chain) {
		logs = append(logs, proxy.AccessLog...)
	}
	return logs
}

func mustJSON(t *testing.T, m proto.Message) string {
	t.Helper()
	out, err := protojson.MarshalOptions{Multiline: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestServicesAreToldTheUntrustedPeerItself(t *testing.T) {
	eachListener(t, func(t *testing.T, l *listenerv3.Listener, p settings.Listener) {
		if !limited(p) {
			return
		}
		for _, chain := range l.FilterChains {
			if trustedChain(chain, p) {
				continue
			}
			one := &listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{chain}}
			for _, hcm := range managers(t, one) {
				if hcm.XffNumTrustedHops != 1 || !hcm.SkipXffAppend || len(hcm.EarlyHeaderMutationExtensions) != 1 {
					t.Errorf("%s: the connection manager of chain %s takes the client from elsewhere: %v", l.Name, chain.Name, hcm)
					continue
				}
				early := &earlyv3.HeaderMutation{}
				if err := hcm.EarlyHeaderMutationExtensions[0].TypedConfig.UnmarshalTo(early); err != nil {
					t.Fatal(err)
				}
				for i, m := range early.Mutations {
					value := m.GetAppend().GetHeader().GetValue()
					if m.GetAppend().GetHeader().GetKey() == "x-forwarded-port" && value == fmt.Sprint(l.Address.GetSocketAddress().GetPortValue()) {
						continue
					}
					if i == 0 && (m.GetAppend().GetHeader().GetKey() != "x-forwarded-for" || value != "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%") || i > 0 && value != "" {
						t.Errorf("%s: chain %s tells services %v", l.Name, chain.Name, m)
					}
				}
			}
			for _, state := range networkFilters[*networkstatev3.Config](t, chain) {
				for _, v := range state.OnNewConnection {
					if strings.HasPrefix(v.GetObjectKey(), "usher.tlv.") {
						t.Errorf("%s: chain %s believes TLVs: %v", l.Name, chain.Name, v)
					}
				}
			}
		}
	})
}

// What Envoy tells a service in a PROXY header is what the client's has said.
func TestARelayTellsNothingThatIsNotBelieved(t *testing.T) {
	eachCompiled(t, func(t *testing.T, c compiled) {
		for l := range c.resources.Listeners.Values() {
			p, gated := policyOf(t, c, l)
			if !gated {
				continue
			}
			for _, chain := range l.FilterChains {
				for _, proxy := range networkFilters[*tcpproxyv3.TcpProxy](t, chain) {
					relayed := strings.HasPrefix(proxy.GetCluster(), "usher-relay:")
					if relayed && limited(p) && !trustedChain(chain, p) {
						t.Errorf("%s: an untrusted peer gets to %s with whatever it claims", l.Name, proxy.GetCluster())
					}
					if relayed != (p.ProxyProtocol.Upstream != settings.UpstreamNone) && proxy.GetCluster() != blackholeCluster {
						t.Errorf("%s leads to %s, with upstream %s", l.Name, proxy.GetCluster(), p.ProxyProtocol.Upstream)
					}
					if relayed {
						checkRelay(t, c, proxy.GetCluster())
					}
				}
			}
		}
	})
}

// checkRelay checks that a relay's cluster leads to its listener.
func checkRelay(t *testing.T, c compiled, name string) {
	t.Helper()
	listener, cluster := c.resources.Listeners.Get(name), c.resources.Clusters.Get(name)
	if listener == nil || cluster == nil {
		t.Fatalf("%s: listener %v, cluster %v", name, listener, cluster)
	}
	at := listener.Address.GetSocketAddress()
	to := cluster.LoadAssignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Address.GetSocketAddress()
	if !proto.Equal(at, to) || !netip.MustParseAddr(at.Address).IsLoopback() {
		t.Errorf("%s listens on %v, and is called at %v", name, at, to)
	}
}

func TestRelaysOfInstancesDoNotMeet(t *testing.T) {
	seen := map[string]string{}
	eachCompiled(t, func(t *testing.T, c compiled) {
		for l := range c.resources.Listeners.Values() {
			at := l.GetAddress().GetSocketAddress().GetAddress()
			of := c.snapshot.ID.String() + " " + c.instance.Node + " " + c.instance.ServiceID
			if other, taken := seen[at]; isRelay(l) && taken && other != of {
				t.Errorf("%s is the relay of %s and of %s", at, other, of)
			}
			seen[at] = of
		}
	})
}
