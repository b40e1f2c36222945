package listeners

import (
	"slices"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	proxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/ordered/orderedcmp"
)

func TestProxyProtocolIsTheFirstListenerFilterAndOnlyWhereItIsOn(t *testing.T) {
	eachCompiled(t, func(t *testing.T, c compiled) {
		mode, _ := modeOf(c)
		for l := range c.resources.Listeners.Values() {
			for i, f := range l.ListenerFilters {
				if f.Name == proxyProtocolName && i != 0 {
					t.Errorf("%s: the PROXY filter is listener filter %d, so that another one reads the header", l.Name, i)
				}
			}
			if on := proxyFilter(t, l) != nil; on != (mode != gateway.Off) {
				t.Errorf("%s: the PROXY filter is there: %v, with mode %s", l.Name, on, mode)
			}
		}
	})
}

func TestStrictRefusesWhatPermissiveAllows(t *testing.T) {
	eachCompiled(t, func(t *testing.T, c compiled) {
		mode, _ := modeOf(c)
		for l := range c.resources.Listeners.Values() {
			if f := proxyFilter(t, l); f != nil && f.AllowRequestsWithoutProxyProtocol != (mode == gateway.Permissive) {
				t.Errorf("%s: plain connections are allowed: %v, with mode %s", l.Name, f.AllowRequestsWithoutProxyProtocol, mode)
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

func TestTheClientsAddressIsTheConnectionsWherePROXYProtocolIsOn(t *testing.T) {
	eachCompiled(t, func(t *testing.T, c compiled) {
		for l := range c.resources.Listeners.Values() {
			on := proxyFilter(t, l) != nil
			for _, hcm := range managers(t, l) {
				if hcm.GetUseRemoteAddress().GetValue() != on {
					t.Errorf("%s: use_remote_address is %v; the PROXY filter is there: %v", l.Name, hcm.UseRemoteAddress, on)
				}
				if hcm.PreserveExternalRequestId != on || (len(hcm.GetInternalAddressConfig().GetCidrRanges()) > 0) != on {
					t.Errorf("%s: preserve_external_request_id %v, internal_address_config %v; the PROXY filter is there: %v",
						l.Name, hcm.PreserveExternalRequestId, hcm.InternalAddressConfig, on)
				}
			}
		}
	})
}

func TestNobodyKnowsTheModeSoNoListenerIsBuilt(t *testing.T) {
	eachCompiled(t, func(t *testing.T, c compiled) {
		if _, known := modeOf(c); !known && c.resources.Listeners.Len() > 0 {
			t.Errorf("there are listeners: %v", slices.Collect(c.resources.Listeners.Keys()))
		}
	})
}

func TestWhatInstancesShareIsTheSameBytes(t *testing.T) {
	eachCase(t, func(t *testing.T, in []byte) {
		s, envoys := mustParse(t, in)
		byFetch := map[fetchTimeout][]byte{}
		for _, in := range s.Instances {
			r := Compile(s, in, envoys[0])
			r.Listeners = ordered.Map[*listenerv3.Listener]{}
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
			first := encode(t, Compile(s, in, envoys[0]))
			for range 5 {
				if string(encode(t, Compile(s, in, envoys[0]))) != string(first) {
					t.Fatal("the same input gives other bytes")
				}
			}
		}
		if diff := cmp.Diff(before, s, cmp.AllowUnexported(gateway.Layer{}), orderedcmp.Entries[*gateway.Endpoints]()); diff != "" {
			t.Errorf("the snapshot was modified:\n%s", diff)
		}
	})
}

// modeOf gives the PROXY protocol mode that the settings of a case resolve to.
func modeOf(c compiled) (gateway.Mode, bool) {
	p, known := c.snapshot.PolicyOf(c.instance, 0)
	return p.ProxyProtocol.Mode, known
}

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
		for _, f := range chain.Filters {
			hcm := &hcmv3.HttpConnectionManager{}
			if !f.GetTypedConfig().MessageIs(hcm) {
				continue
			}
			if err := f.GetTypedConfig().UnmarshalTo(hcm); err != nil {
				t.Fatal(err)
			}
			out = append(out, hcm)
		}
	}
	return out
}

// encode gives the bytes of resources, as they would go to Envoy.
func encode(t *testing.T, r *Resources) []byte {
	t.Helper()
	var out []byte
	for _, m := range allMessages(r) {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}
