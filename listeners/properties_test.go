package listeners

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	proxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/orderedcmp"
)

func TestProxyProtocolIsTheFirstListenerFilterAndOnlyWhereItIsOn(t *testing.T) {
	eachListener(t, func(t *testing.T, l *listenerv3.Listener, p settings.Listener) {
		for i, f := range l.ListenerFilters {
			if f.Name == proxyProtocolName && i != 0 {
				t.Errorf("%s: the PROXY filter is listener filter %d, so that another one reads the header", l.Name, i)
			}
		}
		if on := proxyFilter(t, l) != nil; on != p.ProxyProtocol.Enabled() {
			t.Errorf("%s: the PROXY filter is there: %v, with mode %s", l.Name, on, p.ProxyProtocol.Mode)
		}
	})
}

func TestStrictRefusesWhatPermissiveAllows(t *testing.T) {
	eachListener(t, func(t *testing.T, l *listenerv3.Listener, p settings.Listener) {
		if f := proxyFilter(t, l); f != nil && f.AllowRequestsWithoutProxyProtocol != (p.ProxyProtocol.Mode == settings.Permissive) {
			t.Errorf("%s: plain connections are allowed: %v, with mode %s", l.Name, f.AllowRequestsWithoutProxyProtocol, p.ProxyProtocol.Mode)
		}
	})
}

func TestAVersionThatIsNotAllowedIsRefused(t *testing.T) {
	eachListener(t, func(t *testing.T, l *listenerv3.Listener, p settings.Listener) {
		f := proxyFilter(t, l)
		if f == nil {
			return
		}
		for version, proto := range map[settings.Version]corev3.ProxyProtocolConfig_Version{
			settings.V1: corev3.ProxyProtocolConfig_V1, settings.V2: corev3.ProxyProtocolConfig_V2,
		} {
			if slices.Contains(f.DisallowedVersions, proto) == slices.Contains(p.ProxyProtocol.Versions, version) {
				t.Errorf("%s: %v are refused, with versions %v", l.Name, f.DisallowedVersions, p.ProxyProtocol.Versions)
			}
		}
	})
}

func TestASilentClientDoesNotGetPastTheListenerFilters(t *testing.T) {
	eachCompiled(t, func(t *testing.T, c compiled) {
		for l := range c.resources.Listeners.Values() {
			if l.ContinueOnListenerFiltersTimeout {
				t.Errorf("%s: continue_on_listener_filters_timeout makes strict permissive", l.Name)
			}
		}
	})
}

func TestEachListenerHasCountersOfItsOwn(t *testing.T) {
	eachCompiled(t, func(t *testing.T, c compiled) {
		of := map[string]string{}
		for l := range c.resources.Listeners.Values() {
			f := proxyFilter(t, l)
			if f == nil || !envoy.CapabilitiesOf(c.envoy).ProxyStatPrefix {
				continue
			}
			if other, taken := of[f.StatPrefix]; taken || f.StatPrefix == "" {
				t.Errorf("%s: its counters are called %q, as those of %q", l.Name, f.StatPrefix, other)
			}
			of[f.StatPrefix] = l.Name
		}
	})
}

func TestTheClientsAddressIsTheConnectionsWhereHeadersNameTheClient(t *testing.T) {
	eachListener(t, func(t *testing.T, l *listenerv3.Listener, p settings.Listener) {
		on := p.ProxyProtocol.Enabled() || p.ClientAddress.IsCustom()
		for _, chain := range l.FilterChains {
			ofProxies := len(chain.GetFilterChainMatch().GetSourcePrefixRanges()) > 0
			for _, hcm := range networkFilters[*hcmv3.HttpConnectionManager](t, chain) {
				if hcm.GetUseRemoteAddress().GetValue() != (on && !ofProxies) || (len(hcm.OriginalIpDetectionExtensions) > 0) != ofProxies {
					t.Errorf("%s: use_remote_address is %v, with %+v, for %v", l.Name, hcm.UseRemoteAddress, p, chain.FilterChainMatch)
				}
			}
		}
		for _, hcm := range managers(t, l) {
			if hcm.PreserveExternalRequestId != on || (len(hcm.GetInternalAddressConfig().GetCidrRanges()) > 0) != on {
				t.Errorf("%s: preserve_external_request_id %v, internal_address_config %v, with %+v",
					l.Name, hcm.PreserveExternalRequestId, hcm.InternalAddressConfig, p)
			}
		}
	})
}

func TestNoListenerIsBuiltWhileItsSettingsAreNotKnown(t *testing.T) {
	eachCompiled(t, func(t *testing.T, c compiled) {
		if _, known := c.snapshot.ListenerSettings(c.instance, 0); !known && c.resources.Listeners.Len() > 0 {
			t.Errorf("there are listeners: %v", slices.Collect(c.resources.Listeners.Keys()))
		}
	})
}

// Whatever the release, a listener that is built has everything that protects.
func TestWhatAnEnvoyIsTooOldForIsHeldBack(t *testing.T) {
	eachCase(t, func(t *testing.T, in []byte) {
		s, _ := mustParse(t, in)
		for minor := range uint32(20) {
			e := gateway.EnvoyVersion{Major: 1, Minor: 22 + minor}
			for _, in := range s.Instances {
				c := compiled{snapshot: s, instance: in, envoy: e, resources: compile(s, in, e)}
				for l := range c.resources.Listeners.Values() {
					checkKnown(t, l, c)
				}
			}
		}
	})
}

func checkKnown(t *testing.T, l *listenerv3.Listener, c compiled) {
	t.Helper()
	p, gated := policyOf(t, c, l)
	if !gated {
		return
	}
	for what, since := range map[string]uint32{
		"permissive":                       when(p.ProxyProtocol.Mode == settings.Permissive, 23),
		"a version that is refused":        when(p.ProxyProtocol.Enabled() && len(p.ProxyProtocol.Versions) < 2, 30),
		"TLVs":                             when(p.ProxyProtocol.Enabled() && len(p.ProxyProtocol.TLVs) > 0, 32),
		"headers that are changed in time": when(len(managers(t, l)) > 0 && p.ProxyProtocol.Enabled() && !p.ProxyProtocol.TrustsAll(), 25),
		"an X-Forwarded-For of our own":    when(len(managers(t, l)) > 0 && p.ClientAddress.XFF == settings.XFFOverwrite, 25),
		"proxies by their addresses":       when(len(managers(t, l)) > 0 && len(p.ClientAddress.TrustedCIDRs) > 0, 33),
		"PROXY headers on both sides":      when(len(managers(t, l)) == 0 && p.ProxyProtocol.Enabled() && p.ProxyProtocol.Upstream != settings.UpstreamNone, 30),
		"a TLV that means https":           when(len(managers(t, l)) > 0 && p.ClientAddress.ForwardedProto.Type == settings.ForwardedProtoTLV, 32),
		"a port that means https":          when(len(managers(t, l)) > 0 && p.ClientAddress.ForwardedProto.Type == settings.ForwardedProtoPorts, 32),
	} {
		if c.envoy.Minor < since {
			t.Errorf("%s is sent to Envoy %s with %s, which came with 1.%d", l.Name, c.envoy, what, since)
		}
	}
}

// CVE-2024-23327 was fixed in several releases.
func TestReleasesThatALOCALHeaderEnds(t *testing.T) {
	for release, survives := range map[gateway.EnvoyVersion]bool{
		{}: true, {Major: 1, Minor: 40}: true, {Major: 1, Minor: 30}: true, {Major: 1, Minor: 25, Patch: 9}: false,
		{Major: 1, Minor: 29, Patch: 1}: true, {Major: 1, Minor: 29}: false,
		{Major: 1, Minor: 28, Patch: 1}: true, {Major: 1, Minor: 28}: false,
		{Major: 1, Minor: 27, Patch: 3}: true, {Major: 1, Minor: 27, Patch: 2}: false,
		{Major: 1, Minor: 26, Patch: 7}: true, {Major: 1, Minor: 26, Patch: 6}: false,
	} {
		if got := envoy.CapabilitiesOf(release).SurvivesLocal; got != survives {
			t.Errorf("Envoy %s survives: %v, want %v", release, got, survives)
		}
	}
}

func when(cond bool, since uint32) uint32 {
	if cond {
		return since
	}
	return 0
}

func TestWhatInstancesShareIsTheSameBytes(t *testing.T) {
	eachCase(t, func(t *testing.T, in []byte) {
		s, envoys := mustParse(t, in)
		byFetch := map[envoy.FetchTimeout][]byte{}
		for _, in := range s.Instances {
			r := compile(s, in, envoys[0])
			r.Listeners, r.TokenBuckets = ordered.Map[*listenerv3.Listener]{}, ordered.Map[*typev3.TokenBucket]{}
			got, fetch := encode(t, r), fetchTimeoutOf(in)
			if want, ok := byFetch[fetch]; ok && string(got) != string(want) {
				t.Errorf("%s/%s: its routes, clusters, endpoints or secrets differ from another instance's", in.Node, in.ServiceID)
			}
			byFetch[fetch] = got
		}
	})
}

func TestCompileGivesTheSameBytesAgainAndLeavesItsInputAlone(t *testing.T) {
	eachCase(t, func(t *testing.T, in []byte) {
		s, envoys := mustParse(t, in)
		before, _ := mustParse(t, in)
		for _, in := range s.Instances {
			first := encode(t, compile(s, in, envoys[0]))
			for range 5 {
				if string(encode(t, compile(s, in, envoys[0]))) != string(first) {
					t.Fatal("the same input gives other bytes")
				}
			}
		}
		if diff := cmp.Diff(before, s, cmp.AllowUnexported(settings.Layer{}), cmpopts.EquateComparable(netip.Prefix{}), orderedcmp.Entries[*gateway.Endpoints]()); diff != "" {
			t.Errorf("the snapshot was modified:\n%s", diff)
		}
	})
}

// eachListener runs check on every listener of every case that clients connect
// to, with the policy that it shall have.
func eachListener(t *testing.T, check func(t *testing.T, l *listenerv3.Listener, p settings.Listener)) {
	t.Helper()
	eachCompiled(t, func(t *testing.T, c compiled) {
		for l := range c.resources.Listeners.Values() {
			if p, gated := policyOf(t, c, l); gated {
				check(t, l, p)
			}
		}
	})
}

// policyOf returns the policy of a listener, or false for one that is not for
// clients.
func policyOf(t *testing.T, c compiled, l *listenerv3.Listener) (settings.Listener, bool) {
	t.Helper()
	if isRelay(l) {
		return settings.Listener{}, false
	}
	port := l.GetAddress().GetSocketAddress().GetPortValue()
	p, known := c.snapshot.ListenerSettings(c.instance, int(port))
	if !known {
		t.Fatalf("%s was built, and its settings are not known", l.Name)
	}
	if c.snapshot.OnlyTrusted(c.instance, int(port)) && proxyFilter(t, l) == nil {
		p.ProxyProtocol.Mode = settings.Off // its other settings do not allow another mode
	}
	return p, true
}

func isRelay(l *listenerv3.Listener) bool { return strings.HasPrefix(l.Name, "usher-relay:") }

func proxyFilter(t *testing.T, l *listenerv3.Listener) *proxyv3.ProxyProtocol {
	t.Helper()
	for _, f := range l.ListenerFilters {
		if f.Name == proxyProtocolName {
			out := &proxyv3.ProxyProtocol{}
			if err := f.GetTypedConfig().UnmarshalTo(out); err != nil {
				t.Fatal(err)
			}
			return out
		}
	}
	return nil
}

func managers(t *testing.T, l *listenerv3.Listener) []*hcmv3.HttpConnectionManager {
	t.Helper()
	var out []*hcmv3.HttpConnectionManager
	for _, chain := range l.FilterChains {
		out = append(out, networkFilters[*hcmv3.HttpConnectionManager](t, chain)...)
	}
	return out
}

// networkFilters returns the filters of a chain that have one type.
func networkFilters[T proto.Message](t *testing.T, chain *listenerv3.FilterChain) []T {
	t.Helper()
	var out []T
	for _, f := range chain.Filters {
		var zero T
		if !f.GetTypedConfig().MessageIs(zero) {
			continue
		}
		m, err := f.GetTypedConfig().UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m.(T))
	}
	return out
}

// encode returns the bytes of resources, as they would go to Envoy.
func encode(t *testing.T, r *Resources) []byte {
	t.Helper()
	var out []byte
	for _, m := range allMessages(r) {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Appendf(nil, "%x\n", b)...)
	}
	return out
}
