// Package resourcediff compares what two control planes send to an Envoy:
//
//	Client, ReadDump or Add ──Resources──> Canonical ──Compare, Unified──> what differs
//
// A resource is a tree of JSON with the names of Envoy's documentation. In canonical form, resources that mean the same
// look the same, no matter which xDS server made them.
package resourcediff

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"

	// The types that resources carry inside.
	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_http1_bridge/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/usherproxy/usher/internal/redaction"
)

// Tree is decoded JSON.
type Tree = any

// Resources are what an Envoy has: by type URL, by name.
type Resources map[string]map[string]Tree

// The types that an Envoy asks for as a whole, and those that it asks for by name.
var (
	WildcardTypes = []string{resource.ClusterType, resource.ListenerType}
	namedTypes    = []string{resource.EndpointType, resource.RouteType, resource.SecretType}
)

// Add adds a resource.
func (r Resources) Add(name string, a *anypb.Any) error {
	rendered, err := Render(a)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if r[a.TypeUrl] == nil {
		r[a.TypeUrl] = map[string]Tree{}
	}
	r[a.TypeUrl][name] = rendered
	return nil
}

// Render returns a resource as JSON with the names of Envoy's documentation, and
// what it carries inside opened.
func Render(a *anypb.Any) (Tree, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(a)
	if err != nil {
		return nil, err
	}
	var out Tree
	return out, json.Unmarshal(text, &out)
}

// Validate checks a resource, and what it carries inside, by the rules that
// Envoy's API declares and Envoy itself applies.
func Validate(a *anypb.Any) error {
	m, err := a.UnmarshalNew()
	if err != nil {
		return err
	}
	return protorange.Range(m.ProtoReflect(), func(at protopath.Values) error {
		last := at.Index(-1)
		if kind := last.Step.Kind(); kind != protopath.RootStep && kind != protopath.AnyExpandStep {
			return nil // a part of a message that is checked
		}
		if v, ok := last.Value.Message().Interface().(interface{ ValidateAll() error }); ok {
			return v.ValidateAll()
		}
		return nil
	})
}

// Walk visits every object of a tree, the outer ones first.
func Walk(t Tree, visit func(object map[string]any)) {
	switch t := t.(type) {
	case map[string]any:
		visit(t)
		for _, v := range t {
			Walk(v, visit)
		}
	case []any:
		for _, v := range t {
			Walk(v, visit)
		}
	}
}

// References returns the names that clusters, listeners and routes refer to over
// ADS, by type, sorted and without doubles.
func (r Resources) References() map[string][]string {
	out := map[string][]string{}
	for _, typeURL := range WildcardTypes {
		for name, t := range r[typeURL] {
			Walk(t, func(object map[string]any) {
				switch {
				case overADS(object["eds_config"]):
					out[resource.EndpointType] = append(out[resource.EndpointType], StringOr(object["service_name"], name))
				case overADS(object["config_source"]) && object["route_config_name"] != nil:
					out[resource.RouteType] = append(out[resource.RouteType], StringOr(object["route_config_name"], ""))
				case overADS(object["sds_config"]):
					out[resource.SecretType] = append(out[resource.SecretType], StringOr(object["name"], ""))
				}
			})
		}
	}
	for typeURL, names := range out {
		slices.Sort(names)
		out[typeURL] = slices.Compact(names)
	}
	return out
}

// StringOr returns a string of a tree, or otherwise if it is none.
func StringOr(name any, otherwise string) string {
	if s, ok := name.(string); ok {
		return s
	}
	return otherwise
}

func overADS(source any) bool {
	s, _ := source.(map[string]any)
	return s["ads"] != nil
}

// Canonical returns the resources in a form in which equal ones look equal:
// secrets are back inside what refers to them, certificates are described, and
// lists whose order has no meaning are sorted.
func (r Resources) Canonical() (Resources, error) {
	out := Resources{}
	var err error
	for typeURL, byName := range r {
		if typeURL == resource.SecretType {
			continue
		}
		out[typeURL] = map[string]Tree{}
		for name, t := range byName {
			t = Clone(t)
			Walk(t, func(object map[string]any) { err = cmp.Or(err, InlineSecrets(object, r[resource.SecretType])) })
			Walk(t, func(object map[string]any) { err = cmp.Or(err, describeCertificates(object)) })
			Walk(t, sortLists)
			out[typeURL][name] = t
		}
	}
	return out, err
}

// Clone returns a copy of a tree.
func Clone(t Tree) Tree {
	switch t := t.(type) {
	case map[string]any:
		out := maps.Clone(t)
		for k, v := range out {
			out[k] = Clone(v)
		}
		return out
	case []any:
		out := slices.Clone(t)
		for i, v := range out {
			out[i] = Clone(v)
		}
		return out
	}
	return t
}

// InlineSecrets puts secrets that come over ADS back into a TLS context.
func InlineSecrets(context map[string]any, secrets map[string]Tree) error {
	if list, ok := context["tls_certificate_sds_secret_configs"].([]any); ok && len(list) == 1 {
		secret, err := secretOf(list[0], secrets)
		if err != nil {
			return err
		}
		if secret != nil {
			delete(context, "tls_certificate_sds_secret_configs")
			context["tls_certificates"] = []any{Clone(secret["tls_certificate"])}
		}
	}
	if config := context["validation_context_sds_secret_config"]; config != nil {
		secret, err := secretOf(config, secrets)
		if err != nil || secret == nil {
			return err
		}
		delete(context, "validation_context_sds_secret_config")
		context["validation_context"] = Clone(secret["validation_context"])
	}
	if combined, ok := context["combined_validation_context"].(map[string]any); ok {
		secret, err := secretOf(combined["validation_context_sds_secret_config"], secrets)
		if err != nil || secret == nil {
			return err
		}
		merged, _ := Clone(secret["validation_context"]).(map[string]any)
		base, _ := combined["default_validation_context"].(map[string]any)
		maps.Copy(merged, base)
		delete(context, "combined_validation_context")
		context["validation_context"] = merged
	}
	return nil
}

// secretOf returns the secret that a reference over ADS leads to, nil for one
// over something else.
func secretOf(config any, secrets map[string]Tree) (map[string]any, error) {
	reference, _ := config.(map[string]any)
	if !overADS(reference["sds_config"]) {
		return nil, nil
	}
	name := StringOr(reference["name"], "")
	secret, ok := secrets[name].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("secret %q is missing", name)
	}
	return secret, nil
}

// describeCertificates replaces a certificate and its key, which no two
// servers share, by what they say.
func describeCertificates(object map[string]any) error {
	chain, key := inlineString(object["certificate_chain"]), inlineString(object["private_key"])
	if chain == "" {
		return nil
	}
	if object["private_key"] != redaction.Redacted {
		if _, err := tls.X509KeyPair([]byte(chain), []byte(key)); err != nil {
			return fmt.Errorf("certificate and key: %w", err)
		}
		object["private_key"] = "fits"
	}
	var described []any
	for rest := []byte(chain); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		described = append(described, map[string]any{
			"uris": fmt.Sprint(c.URIs), "dns": strings.Join(dnsNames(c), " "),
			"issuer": c.Issuer.String(), "algorithm": c.PublicKeyAlgorithm.String(),
			"usage": fmt.Sprint(c.KeyUsage, c.ExtKeyUsage), "ca": c.IsCA,
		})
	}
	object["certificate_chain"] = described
	return nil
}

// dnsNames returns the DNS names of a certificate, sorted. Consul writes its own
// domains with a dot at the end, which Go and browsers do not understand; Usher
// adds the same names without it. Those are left out here, and no others.
func dnsNames(c *x509.Certificate) []string {
	added := func(name string) bool { return slices.Contains(c.DNSNames, name+".") }
	return slices.DeleteFunc(slices.Sorted(slices.Values(c.DNSNames)), added)
}

func inlineString(source any) string {
	s, _ := source.(map[string]any)
	return StringOr(s["inline_string"], "")
}

// unordered are the lists whose order has no meaning, or comes from the random
// order of a map in Consul.
var unordered = []string{
	"lb_endpoints", "virtual_hosts", "request_headers_to_add", "response_headers_to_add", "match_typed_subject_alt_names",
}

func sortLists(object map[string]any) {
	for _, field := range unordered {
		if list, ok := object[field].([]any); ok {
			slices.SortFunc(list, func(a, b any) int { return strings.Compare(Text(a), Text(b)) })
		}
	}
}

// Text is a tree as JSON, keys in order.
func Text(t Tree) string {
	out, err := json.Marshal(t)
	if err != nil {
		return err.Error()
	}
	return string(out)
}
