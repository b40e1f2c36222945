//go:build e2e

package conformance

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
)

// coverage counts how often cases set each field of the config entries, by
// kind and path.
type coverage map[string]int

// add counts the fields of a case. What Consul's API does not know by name is
// not counted, and so found missing.
func (c coverage) add(t *testing.T, one lab.GatewayCase) {
	t.Helper()
	for _, e := range one.Entries {
		kind := fmt.Sprint(e["Kind"])
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		entry, err := api.DecodeConfigEntryFromJSON(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		c.count(kind, reflect.ValueOf(entry))
	}
}

// count counts the fields below a value that are not zero. Every field that
// could be there is listed, with 0.
func (c coverage) count(path string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v = reflect.New(v.Type().Elem())
		}
		c.count(path, v.Elem())
	case reflect.Slice:
		if v.Len() == 0 && v.Type().Elem().Kind() == reflect.Struct {
			c.count(path, reflect.New(v.Type().Elem()))
		}
		for i := range v.Len() {
			if e := v.Index(i); e.Kind() == reflect.Struct || e.Kind() == reflect.Pointer {
				c.count(path, e)
			}
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			if e := v.MapIndex(key); e.Kind() == reflect.Struct {
				c.count(path, e)
			}
		}
	case reflect.Struct:
		c.fields(path, v)
	}
}

func (c coverage) fields(path string, v reflect.Value) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name := path + "." + field.Name
		if field.Name == "Kind" || slices.Contains(notGenerated[:], field.Name) || concernsNoGateway(name) {
			continue
		}
		if !v.Field(i).IsZero() {
			c[name]++
		} else if _, ok := c[name]; !ok {
			c[name] = 0
		}
		c.count(name, v.Field(i))
	}
}

// notGenerated are the fields, of whatever entry, that cases leave out: what
// Consul itself writes, what is Enterprise's, what needs other datacenters or
// peers, and what came after the Consul that cases run on.
var notGenerated = [...]string{
	"CreateIndex", "ModifyIndex", "Hash", "Status", "Meta",
	"Namespace", "Partition", "SamenessGroup", "PrioritizeByLocality",
	"Datacenter", "Datacenters", "Peer", "MeshGateway",
	"Consecutive5xx", "ConsecutiveGatewayFailure", "EnforcingConsecutiveGatewayFailure",
}

// outside are the fields that Consul itself does not use for an ingress
// gateway, or not without Enterprise, with everything below them.
var outside = []string{
	"proxy-defaults.Mode", "proxy-defaults.TransparentProxy", "proxy-defaults.MutualTLSMode", "proxy-defaults.Expose",
	"proxy-defaults.EnvoyExtensions", "proxy-defaults.FailoverPolicy",
	"service-defaults.Mode", "service-defaults.TransparentProxy", "service-defaults.MutualTLSMode", "service-defaults.Expose",
	"service-defaults.UpstreamConfig", "service-defaults.Destination", "service-defaults.MaxInboundConnections",
	"service-defaults.LocalConnectTimeoutMs", "service-defaults.LocalRequestTimeoutMs",
	"service-defaults.BalanceInboundConnections", "service-defaults.RateLimits", "service-defaults.EnvoyExtensions",
	"service-defaults.MaxRequestHeadersKB", // the gateway's own counts: a written case
	"service-resolver.Failover.Policy",
	"mesh.TransparentProxy", "mesh.AllowEnablingPermissiveMutualTLS", "mesh.TLS.Incoming", "mesh.HTTP", "mesh.Peering",
}

func concernsNoGateway(name string) bool {
	return slices.ContainsFunc(outside, func(o string) bool { return name == o || strings.HasPrefix(name, o+".") })
}

// String lists the fields with their counts.
func (c coverage) String() string {
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c)) {
		fmt.Fprintf(&out, "%6d %s\n", c[name], name)
	}
	return out.String()
}

// TestRandomCasesSetEveryField demands that what the generator makes is not
// narrower than what Consul takes.
func TestRandomCasesSetEveryField(t *testing.T) {
	found := coverage{}
	for i := range 500 {
		found.add(t, generate(1, i))
	}
	t.Logf("how often 500 cases set each field:\n%s", found)
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if found[name] == 0 {
			t.Errorf("no case sets %s", name)
		}
	}
}
