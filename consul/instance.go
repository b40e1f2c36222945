package consul

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// instancesType reads the registered instances of a gateway, healthy or not, with proxy-defaults and service-defaults
// merged in. The query also returns after changes of those.
var instancesType = &queryType{
	name: "instances", path: "/v1/health/service/", params: []string{"merge-central-config"},
	needs:  "service:read on the gateway and node:read",
	decode: decodeRegistrations(ingressInstances),
}

// ingressGatewayKind is the kind that ingress gateways are registered with.
const ingressGatewayKind = "ingress-gateway"

// ingressInstances returns the instances of an ingress gateway, sorted by node and ID. It leaves out their checks, whose
// outputs change all the time. Usher also serves an instance that fails them.
func ingressInstances(list []*registration) *[]*registration {
	list = slices.DeleteFunc(list, func(r *registration) bool { return r.Service.Kind != ingressGatewayKind })
	for _, r := range list {
		r.Checks = nil
	}
	slices.SortFunc(list, func(a, b *registration) int {
		return cmp.Or(cmp.Compare(a.Node.Node, b.Node.Node), cmp.Compare(a.Service.ID, b.Service.ID))
	})
	return &list
}

// instanceID identifies an instance. Several nodes may have the same service ID.
type instanceID struct{ node, service string }

// mergeTime is how long the settings of an instance may be bad without a problem. The agent merges a change of
// proxy-defaults into the registration a moment later. Until then, the former value looks like the registration's own.
const mergeTime = time.Second

// addInstances adds the instances. A registration with bad settings keeps the last valid ones.
func (b *snapshotBuild) addInstances(regs []*registration, d *proxyDefaults) {
	b.next.instances = map[instanceID]*gateway.Instance{}
	for _, r := range regs {
		id := instanceID{r.Node.Node, r.Service.ID}
		where := fmt.Sprintf("service %q on node %q", r.Service.ID, r.Node.Node)
		in, problems := r.instance(where)
		b.snapshot.Problems = append(b.snapshot.Problems, problems...)
		own := settings.StripInherited(r.Service.Proxy.Config[settings.Key], d.config[settings.Key])
		before := b.prev.instances[id]
		in.Registration, problems = cmp.Or(before, in).Registration.Update(where, own)
		problems = append(problems, settings.CheckKeys(where+": Proxy.Config", r.Service.Proxy.Config, d.config)...)
		if len(problems) > 0 && b.deadlineExceeded("bad settings of "+where, mergeTime) {
			b.snapshot.Problems = append(b.snapshot.Problems, problems...)
		}
		b.next.instances[id] = reuse(before, in)
		b.snapshot.Instances = append(b.snapshot.Instances, b.next.instances[id])
	}
}

// instance returns the instance without Usher's settings.
func (r *registration) instance(where string) (*gateway.Instance, []problem.Problem) {
	config, problems := proxyConfig(where, r.Service.Proxy.Config)
	in := &gateway.Instance{
		Node:            r.Node.Node,
		ServiceID:       r.Service.ID,
		NodeAddress:     r.Node.Address,
		Address:         r.Service.Address,
		Port:            r.Service.Port,
		TaggedAddresses: r.Service.TaggedAddresses,
		Config:          config,
		AccessLogs:      r.Service.Proxy.AccessLogs,
	}
	// consul-k8s writes the Service in front of the instance into Meta.
	if meta := r.Service.Meta; meta.KubernetesNamespace != "" && meta.KubernetesService != "" {
		in.Kubernetes = gateway.KubernetesService{Namespace: meta.KubernetesNamespace, Name: meta.KubernetesService}
	}
	return in, problems
}

// proxyConfig decodes a gateway's opaque Proxy.Config as Consul does: keys in any case, and values converted if
// possible ("true", "8080", a list of one). A value that cannot be converted is a problem, and Usher ignores it.
func proxyConfig(where string, config map[string]any) (gateway.ProxyConfig, []problem.Problem) {
	d := weakDecoder{where: where}
	var c gateway.ProxyConfig
	for _, key := range slices.Sorted(maps.Keys(config)) {
		v := config[key]
		switch k := currentKey(key, config); k {
		case "envoy_gateway_no_default_bind":
			c.NoDefaultBind = d.bool(key, v)
		case "envoy_gateway_bind_tagged_addresses":
			c.BindTaggedAddresses = d.bool(key, v)
		case "envoy_gateway_bind_addresses":
			c.BindAddresses = d.addresses(key, v)
		case "max_request_headers_kb":
			c.MaxRequestHeadersKB = uint32(min(max(0, d.int(key, v)), math.MaxUint32))
		case "xds_fetch_timeout_ms":
			before := len(d.problems)
			if ms := d.int(key, v); v != nil && ms >= 0 && len(d.problems) == before {
				timeout := time.Duration(ms) * time.Millisecond
				c.FetchTimeout = &timeout
			}
		}
	}
	return c, d.problems
}

// currentKey returns the current name of a key. envoy_mesh_gateway_… is an older name of envoy_gateway_…, which counts
// if both are set.
func currentKey(key string, config map[string]any) string {
	key = strings.ToLower(key)
	rest, old := strings.CutPrefix(key, "envoy_mesh_gateway_")
	if !old {
		return key
	}
	now := "envoy_gateway_" + rest
	if _, both := config[now]; both {
		return key
	}
	return now
}

// weakDecoder converts values, and collects the problems.
type weakDecoder struct {
	where    string
	problems []problem.Problem
}

func (d *weakDecoder) bool(key string, v any) bool {
	switch v := unwrapSingle(v).(type) {
	case nil:
		return false
	case bool:
		return v
	case float64:
		return v != 0
	case string:
		if b, err := strconv.ParseBool(cmp.Or(v, "false")); err == nil {
			return b
		}
	}
	d.addProblem(key, v, "true or false")
	return false
}

func (d *weakDecoder) int(key string, v any) int64 {
	switch v := unwrapSingle(v).(type) {
	case nil:
		return 0
	case bool:
		if v {
			return 1
		}
		return 0
	case float64:
		if v == math.Trunc(v) && math.Abs(v) <= 1<<53 {
			return int64(v)
		}
	case string:
		if n, err := strconv.ParseInt(cmp.Or(v, "0"), 0, 64); err == nil {
			return n
		}
	}
	d.addProblem(key, v, "a whole number")
	return 0
}

// addresses converts {name: {Address, Port}}.
func (d *weakDecoder) addresses(key string, v any) map[string]gateway.Address {
	m, ok := unwrapSingle(v).(map[string]any)
	if v == nil || ok && len(m) == 0 {
		return nil
	}
	if !ok {
		d.addProblem(key, v, "an object of names with address and port")
		return nil
	}
	out := make(map[string]gateway.Address, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		raw := m[name]
		fields, ok := unwrapSingle(raw).(map[string]any)
		if !ok {
			d.addProblem(key+"."+name, raw, "an object with address and port")
			continue
		}
		out[name] = d.address(key+"."+name, fields)
	}
	return out
}

func (d *weakDecoder) address(key string, fields map[string]any) gateway.Address {
	var a gateway.Address
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		v := fields[field]
		switch strings.ToLower(field) {
		case "address":
			s, ok := unwrapSingle(v).(string)
			if !ok {
				d.addProblem(key+"."+field, v, "an IP address")
			}
			a.Address = s
		case "port":
			a.Port = int(d.int(key+"."+field, v))
		}
	}
	return a
}

func (d *weakDecoder) addProblem(key string, v any, want string) {
	text, err := json.Marshal(v)
	if err != nil || len(text) > 64 {
		text = fmt.Appendf(nil, "a value of type %T", v)
	}
	d.problems = append(d.problems, problem.Problem{
		Where: d.where + ": Proxy.Config." + key,
		What:  fmt.Sprintf("%s is not %s; correct it; until then Usher ignores it", text, want),
	})
}

// unwrapSingle returns the element of a list of one, and any other value as it is. Consul's HCL decoder makes such
// lists of blocks.
func unwrapSingle(v any) any {
	if list, ok := v.([]any); ok && len(list) == 1 {
		return unwrapSingle(list[0])
	}
	return v
}
