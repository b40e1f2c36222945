package bootstrap_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/usherproxy/usher/internal/bootstrap"
)

// ushersListeners returns the listeners that Usher adds, by name, and their HTTP connection managers: two let Envoy drain,
// and one takes its reports to consul-dataplane.
func ushersListeners(t *testing.T, b *bootstrapv3.Bootstrap) (map[string]*listenerv3.Listener, map[string]*hcmv3.HttpConnectionManager) {
	t.Helper()
	listeners, managers := map[string]*listenerv3.Listener{}, map[string]*hcmv3.HttpConnectionManager{}
	for _, l := range b.GetStaticResources().GetListeners() {
		var m hcmv3.HttpConnectionManager
		if err := l.GetFilterChains()[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(&m); err == nil {
			listeners[l.GetName()], managers[l.GetName()] = l, &m
		}
	}
	if names := slices.Sorted(maps.Keys(managers)); !slices.Equal(names, []string{"usher_admin", "usher_quit", "usher_reports"}) {
		t.Fatalf("the listeners are %q", names)
	}
	return listeners, managers
}

// TestNothingCutsADrainShort has a drain time that is longer than any default of Envoy's: 15 s for an answer, and five
// minutes for a stream on which nothing happens.
func TestNothingCutsADrainShort(t *testing.T) {
	const drainTime = time.Hour + 500*time.Millisecond
	_, b := ofPlainGateway().fill(t, dataplaneTemplate(t, bootstrap.DataplaneOptions{DrainTime: drainTime}))
	listeners, managers := ushersListeners(t, b)
	for name, m := range managers {
		if l := listeners[name]; l.GetDrainType() != listenerv3.Listener_MODIFY_ONLY || !l.GetIgnoreGlobalConnLimit() {
			t.Errorf("%s is drained with the others, or is closed for too many clients: %v", name, l)
		}
		if name == "usher_reports" { // a report does not wait for the drain
			continue
		}
		if idle := m.GetStreamIdleTimeout(); idle == nil || idle.AsDuration() != 0 {
			t.Errorf("%s ends idle streams after %v", name, idle)
		}
		for _, r := range m.GetRouteConfig().GetVirtualHosts()[0].GetRoutes() {
			if timeout := r.GetRoute().GetTimeout(); timeout == nil || timeout.AsDuration() != 0 {
				t.Errorf("%s waits for an answer to %v for %v", name, r.GetMatch(), timeout)
			}
		}
	}
	var fault faultv3.HTTPFault
	if err := managers["usher_quit"].GetHttpFilters()[0].GetTypedConfig().UnmarshalTo(&fault); err != nil {
		t.Fatal(err)
	}
	percent := fault.GetDelay().GetPercentage()
	if got := fault.GetDelay().GetFixedDelay().AsDuration(); got != drainTime || percent.GetNumerator() != 100 || percent.GetDenominator() != typev3.FractionalPercent_HUNDRED {
		t.Errorf("%v of the requests to quit wait for %v, want all, for %v", percent, got, drainTime)
	}
}

// The admin interface sees the same requests as without the listener in front of it.
func TestTheAdminInterfaceGetsRequestsAsTheyAre(t *testing.T) {
	_, b := ofPlainGateway().fill(t, dataplaneTemplate(t, bootstrap.DataplaneOptions{DrainTime: time.Second}))
	_, managers := ushersListeners(t, b)
	if !managers["usher_admin"].GetSkipXffAppend() {
		t.Error("the requests get an X-Forwarded-For")
	}
}

func TestADrainLeavesTheGatewaysOwnListenersAndClusters(t *testing.T) {
	for _, drainTime := range []time.Duration{0, time.Second} {
		_, b := ofFullGateway().fill(t, dataplaneTemplate(t, bootstrap.DataplaneOptions{DrainTime: drainTime}))
		var listeners, clusters []string
		for _, l := range b.GetStaticResources().GetListeners() {
			listeners = append(listeners, l.GetName())
		}
		for _, c := range b.GetStaticResources().GetClusters() {
			clusters = append(clusters, c.GetName())
		}
		if !slices.Contains(listeners, "envoy_ready_listener") || !slices.Contains(clusters, "self_admin") || !slices.Contains(clusters, "zipkin") {
			t.Errorf("drain of %v: the listeners are %q and the clusters %q", drainTime, listeners, clusters)
		}
		if drains := slices.Contains(listeners, "usher_admin"); drains != (drainTime > 0) {
			t.Errorf("drain of %v: the listeners are %q", drainTime, listeners)
		}
	}
}
