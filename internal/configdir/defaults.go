package configdir

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// opaque holds the keys that are honoured of an opaque config: proxy-defaults'
// Config and a gateway's proxy.config
// (https://developer.hashicorp.com/consul/docs/reference/proxy/envoy#gateway-options).
type opaque struct {
	NoDefaultBind       bool                       `name:"envoy_gateway_no_default_bind"`
	BindTaggedAddresses bool                       `name:"envoy_gateway_bind_tagged_addresses"`
	BindAddresses       map[string]gateway.Address `name:"envoy_gateway_bind_addresses"`

	OldNoDefaultBind       bool                       `name:"envoy_mesh_gateway_no_default_bind"`
	OldBindTaggedAddresses bool                       `name:"envoy_mesh_gateway_bind_tagged_addresses"`
	OldBindAddresses       map[string]gateway.Address `name:"envoy_mesh_gateway_bind_addresses"`

	FetchTimeoutMS      *int64 `name:"xds_fetch_timeout_ms"`
	MaxRequestHeadersKB uint32 `name:"max_request_headers_kb"`
	Protocol            string `name:"protocol"` // proxy-defaults': of services without one
	Usher               *node  `name:"usher"`

	root *node
}

// config gives what the keys mean.
func (o *opaque) config() gateway.ProxyConfig {
	c := gateway.ProxyConfig{
		NoDefaultBind:       o.NoDefaultBind || o.OldNoDefaultBind,
		BindTaggedAddresses: o.BindTaggedAddresses || o.OldBindTaggedAddresses,
		BindAddresses:       o.BindAddresses,
		MaxRequestHeadersKB: o.MaxRequestHeadersKB,
	}
	if c.BindAddresses == nil {
		c.BindAddresses = o.OldBindAddresses
	}
	if o.FetchTimeoutMS != nil && *o.FetchTimeoutMS >= 0 {
		span := time.Duration(*o.FetchTimeoutMS) * time.Millisecond
		c.FetchTimeout = &span
	}
	return c
}

// opaqueConfig decodes an opaque config; nil says nothing. The value of usher
// is left as it is: gateway.Layer decodes it, which remembers the last good.
func (d *decoder) opaqueConfig(n *node, path string) opaque {
	var o opaque
	if n == nil {
		return o
	}
	// Consul decodes these keys in one way, also those of a custom resource.
	custom := d.custom
	d.custom = false
	defer func() { d.custom = custom }()
	d.object(n, path, &o)
	for _, name := range []string{"envoy_gateway_bind_addresses", "envoy_mesh_gateway_bind_addresses"} {
		f := n.single().get(name)
		if f == nil || len(d.problems) > 0 {
			continue
		}
		for _, bind := range f.value.single().fields {
			address := bind.value.single().text("address")
			if _, err := netip.ParseAddr(address); err != nil {
				d.add(bind.at, join(join(path, f.name), bind.name), "%q is not an IP address to listen on; use one", address)
			}
		}
	}
	o.root = n.single()
	return o
}

// layer gives what follows on before, with the settings under the key usher.
// Problems name the lines of what is wrong.
func (o *opaque) layer(before settings.Layer) (settings.Layer, []problem.Problem) {
	if o.Usher == nil {
		return before.Update("", nil)
	}
	where := o.Usher.at.String()
	after, problems := before.Update(where, o.Usher.plain())
	for i, p := range problems {
		path := strings.TrimPrefix(p.Where, where+": ")
		var steps []any
		for name := range strings.SplitSeq(path, ".") {
			name, index, inList := strings.Cut(name, "[")
			steps = append(steps, name)
			if i, err := strconv.Atoi(strings.TrimSuffix(index, "]")); inList && err == nil {
				steps = append(steps, i)
			}
		}
		at, _ := o.root.locate(snake, steps...)
		problems[i].Where = at.String() + ": " + path
	}
	return after, problems
}

// checkProxyDefaults applies the rules of
// https://developer.hashicorp.com/consul/docs/reference/config-entry/proxy-defaults.
func checkProxyDefaults(d *decoder, e *entry[proxyDefaults]) {
	if e.name != "global" {
		d.add(e.at, "", "%q is not allowed; the only proxy-defaults entry is called \"global\"", e.name)
	}
	_, path := e.root.locate(d.spell, e.steps(steps("Config"))...)
	o := d.opaqueConfig(e.spec.Config, path)
	e.spec.opaque = o
	if !slices.Contains(protocols, protocolOf(o.Protocol)) {
		e.problem(d, steps("Config", "protocol"), "%q is not allowed; use one of %s", o.Protocol, strings.Join(protocols, ", "))
	}
	logs := e.spec.AccessLogs
	at := steps("AccessLogs")
	if !slices.Contains([]string{"", "stdout", "stderr", "file"}, logs.Type) {
		e.problem(d, append(at, "Type"), "%q is not allowed; use one of stdout, stderr, file", logs.Type)
	}
	switch {
	case logs.Type == "file" && logs.Path == "":
		e.problem(d, append(at, "Path"), "access logs of type file need a path; add one")
	case logs.Type != "file" && logs.Path != "":
		e.problem(d, append(at, "Path"), "a path goes with type file only; remove it, or set the type")
	case logs.JSONFormat != "" && logs.TextFormat != "":
		e.problem(d, append(at, "TextFormat"), "a JSON format is given as well; remove one of the two")
	case logs.JSONFormat != "" && json.Unmarshal([]byte(logs.JSONFormat), &map[string]any{}) != nil:
		e.problem(d, append(at, "JSONFormat"), "the format is not a JSON object; correct it")
	}
}

// checkDefaults applies the rules of
// https://developer.hashicorp.com/consul/docs/reference/config-entry/service-defaults.
func checkDefaults(d *decoder, e *entry[serviceDefaults]) {
	if e.name == wildcard {
		d.add(e.at, "", "service-defaults are those of one service, not of \"*\"; use proxy-defaults")
	}
	if !slices.Contains(protocols, protocolOf(e.spec.Protocol)) {
		e.problem(d, steps("Protocol"), "%q is not allowed; use one of %s", e.spec.Protocol, strings.Join(protocols, ", "))
	}
	if e.spec.Protocol != "" {
		e.spec.Protocol = protocolOf(e.spec.Protocol)
	}
}
