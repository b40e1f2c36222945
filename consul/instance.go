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

// instancesKind reads the registered instances of a gateway, healthy or not,
// with proxy-defaults and service-defaults merged in. It wakes up for changes
// of those, too.
var instancesType = &queryType{
	name:   "instances",
	path:   "/v1/health/service/",
	params: []string{"merge-central-config"},
	decode: decodeAs(decodeInstances),
}

// Consul's kind of service of ingress gateways.
const ingressGatewayKind = "ingress-gateway"

// registrations are the instances of a gateway, sorted by node and ID.
type registrations struct {
	list []*registration
}

// decodeInstances leaves out the checks, whose outputs change all the time: an
// instance that fails them is served all the same.
func decodeInstances(_ *registrations, a answer) (*registrations, error) {
	list, err := decodeRegistrations(a)
	if err != nil {
		return nil, err
	}
	out := &registrations{}
	for _, r := range list {
		if r.Service.Kind == ingressGatewayKind {
			r.Checks = nil
			out.list = append(out.list, r)
		}
	}
	slices.SortFunc(out.list, func(a, b *registration) int {
		return cmp.Or(cmp.Compare(a.Node.Node, b.Node.Node), cmp.Compare(a.Service.ID, b.Service.ID))
	})
	return out, nil
}

// instanceID names an instance: several nodes may have the same service ID.
type instanceID struct {
	node, service string
}

// mergeTime is how long the settings of an instance may be bad for no other
// reason than that proxy-defaults has changed: its agent needs a moment to merge
// that into the registration, which says the former value as its own until then.
const mergeTime = time.Second

// instances makes the model's instances, and remembers in s what their own
// settings were when they were last good, and since when they are bad.
func (s *source) instances(regs *registrations, d *proxyDefaults, now time.Time) ([]*gateway.Instance, []problem.Problem) {
	var out []*gateway.Instance
	var problems []problem.Problem
	own := map[instanceID]settings.Layer{}
	bad := map[instanceID]time.Time{}
	before := map[instanceID]*gateway.Instance{}
	if s.last != nil {
		for _, in := range s.last.Instances {
			before[instanceID{in.Node, in.ServiceID}] = in
		}
	}
	for _, r := range regs.list {
		id := instanceID{r.Node.Node, r.Service.ID}
		in, wrong := r.instance(s.settings[id], d.config[settings.Key])
		own[id] = in.Registration
		out = append(out, reuse(before[id], in))
		problems = append(problems, wrong.config...)
		if len(wrong.usher) == 0 {
			continue
		}
		bad[id] = now
		if since, known := s.badSince[id]; known {
			bad[id] = since
		}
		if now.Sub(bad[id]) >= mergeTime {
			problems = append(problems, wrong.usher...)
		}
	}
	s.settings, s.badSince = own, bad
	return out, problems
}

// merging says how long it takes until bad settings of an instance may be
// reported; idle when there are none that wait.
func (s *source) mergeDelay(now time.Time) time.Duration {
	left := noDelay
	for _, since := range s.badSince {
		if wait := mergeTime - now.Sub(since); wait > 0 {
			left = min(left, wait)
		}
	}
	return left
}

// kubernetes gives the Service that consul-k8s has found in front of an
// instance; zero for one that is not in Kubernetes.
func (r *registration) kubernetes() gateway.KubernetesService {
	meta := r.Service.Meta
	if meta.KubernetesNamespace == "" || meta.KubernetesService == "" {
		return gateway.KubernetesService{}
	}
	return gateway.KubernetesService{Namespace: meta.KubernetesNamespace, Name: meta.KubernetesService}
}

// wrong is what is wrong with a registration: with the keys that Consul knows,
// and with Usher's own.
type registrationProblems struct {
	config, usher []problem.Problem
}

// instance makes one instance. before are its own settings until now, and
// inherited is what proxy-defaults says of them.
func (r *registration) instance(before settings.Layer, inherited any) (*gateway.Instance, registrationProblems) {
	where := fmt.Sprintf("service %q on node %q", r.Service.ID, r.Node.Node)
	config, inConfig := proxyConfig(where, r.Service.Proxy.Config)
	own, inOwn := before.Update(where, settings.StripInherited(r.Service.Proxy.Config[settings.Key], inherited))
	return &gateway.Instance{
		Node:            r.Node.Node,
		ServiceID:       r.Service.ID,
		NodeAddress:     r.Node.Address,
		Address:         r.Service.Address,
		Port:            r.Service.Port,
		TaggedAddresses: r.Service.TaggedAddresses,
		Kubernetes:      r.kubernetes(),
		Config:          config,
		AccessLogs:      r.Service.Proxy.AccessLogs,
		Registration:    own,
	}, registrationProblems{config: inConfig, usher: inOwn}
}

// proxyConfig decodes a gateway's opaque Proxy.Config as Consul does: keys in
// any case, and values converted where that makes sense ("true", "8080", a list
// of one). A value that cannot be converted is a problem and counts as not set.
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
			if ms := d.int(key, v); v != nil && ms >= 0 && d.ok {
				timeout := time.Duration(ms) * time.Millisecond
				c.FetchTimeout = &timeout
			}
		}
	}
	return c, d.problems
}

// canonical gives the key's present name: envoy_mesh_gateway_… is an older
// spelling of envoy_gateway_…, and gives way where both are set.
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

// weak converts values and collects the ones that cannot be.
type weakDecoder struct {
	where    string
	problems []problem.Problem
	ok       bool // the last conversion was one
}

func (d *weakDecoder) bool(key string, v any) bool {
	d.ok = true
	switch v := unwrapSingle(v).(type) {
	case nil:
		return false
	case bool:
		return v
	case float64:
		return v != 0
	case string:
		if v == "" {
			return false
		}
		if b, err := strconv.ParseBool(v); err == nil {
			return b
		}
	}
	d.addProblem(key, v, "true or false")
	return false
}

func (d *weakDecoder) int(key string, v any) int64 {
	d.ok = true
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
		if v == "" {
			return 0
		}
		if n, err := strconv.ParseInt(v, 0, 64); err == nil {
			return n
		}
	}
	d.addProblem(key, v, "a whole number")
	return 0
}

// addresses converts {name: {Address, Port}}.
func (d *weakDecoder) addresses(key string, v any) map[string]gateway.Address {
	d.ok = true
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
	d.ok = false
	text, err := json.Marshal(v)
	if err != nil || len(text) > 64 {
		text = fmt.Appendf(nil, "a value of type %T", v)
	}
	d.problems = append(d.problems, problem.Problem{
		Where: d.where + ": " + key,
		What:  fmt.Sprintf("%s is not %s; it counts as not set", text, want),
	})
}

// single gives the element of a list of one, and anything else as it is:
// Consul's HCL decoding makes such lists of blocks.
func unwrapSingle(v any) any {
	if list, ok := v.([]any); ok && len(list) == 1 {
		return unwrapSingle(list[0])
	}
	return v
}
