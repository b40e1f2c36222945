package consul

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/problem"
)

// The fields of Consul's answers that say nothing about an ingress gateway, by their paths. All others are in the types
// that Usher decodes, or get a notice: a newer Consul may have fields that matter.
var (
	// envelope are those of every config entry.
	envelope = []string{"Kind", "Namespace", "Partition", "Meta", "Hash", "CreateIndex", "ModifyIndex"}

	// meshOthers are for sidecars, API gateways and servers.
	meshOthers = append([]string{
		"TransparentProxy", "AllowEnablingPermissiveMutualTLS", "TLS.Incoming", "HTTP", "Peering",
	}, envelope...)

	// proxyDefaultsOthers are for sidecars, or come with the gateway's registration or with the discovery chains.
	proxyDefaultsOthers = append([]string{
		"Mode", "TransparentProxy", "MutualTLSMode", "MeshGateway", "Expose", "AccessLogs", "EnvoyExtensions",
		"FailoverPolicy", "PrioritizeByLocality",
	}, envelope...)

	// chainOthers are for sidecars, or are in another field once more.
	chainOthers = []string{
		"Chain.CustomizationHash", "Chain.ServiceMeta", "Chain.EnvoyExtensions", "Chain.AutoVirtualIPs", "Chain.ManualVirtualIPs",
		"Chain.Nodes.Resolver.Failover.Regions", "Chain.Nodes.Splits.Definition.Weight", "Chain.Nodes.Splits.Definition.Service",
		"Chain.Nodes.Splits.Definition.ServiceSubset", "Chain.Nodes.Splits.Definition.Namespace",
		"Chain.Nodes.Splits.Definition.Partition", "Chain.Targets.Locality", "Chain.Targets.TransparentProxy",
	}
)

// unknownFields returns the fields with a value that a JSON value has, and neither T nor the others have:
// "Listeners.Services.Retries", sorted. A Consul that is newer than Usher writes such fields also where no user has set
// them, and then without a value.
func unknownFields[T any](body []byte, others []string) []string {
	var value any
	if json.Unmarshal(body, &value) != nil {
		return nil // its decoding says so
	}
	found := map[string]bool{}
	addUnknown(found, "", value, reflect.TypeFor[T]())
	for _, field := range others {
		delete(found, field)
	}
	return slices.Sorted(maps.Keys(found))
}

// elements returns the elements of a list that has been decoded.
func elements(list []byte) []json.RawMessage {
	var all []json.RawMessage
	_ = json.Unmarshal(list, &all)
	return all
}

// addUnknown adds the fields of a value at a path that a type has not. As in encoding/json, case has no meaning.
func addUnknown(found map[string]bool, path string, value any, t reflect.Type) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	switch value := value.(type) {
	case []any:
		for _, element := range value {
			addUnknown(found, path, element, t)
		}
	case map[string]any:
		for key, below := range value {
			addUnknownField(found, path, key, below, t)
		}
	}
}

// addUnknownField adds a field, or what is unknown in it. The keys of a map are no fields.
func addUnknownField(found map[string]bool, path, key string, value any, t reflect.Type) {
	switch t.Kind() {
	case reflect.Map:
		addUnknown(found, path, value, t.Elem())
	case reflect.Struct:
		known, ok := t.FieldByNameFunc(func(name string) bool { return strings.EqualFold(name, key) })
		if field := strings.TrimPrefix(path+"."+key, "."); ok {
			addUnknown(found, field, value, known.Type)
		} else if hasValue(value) {
			found[field] = true
		}
	}
}

// hasValue reports whether a value is more than the zero value of its type.
func hasValue(value any) bool {
	switch value := value.(type) {
	case nil:
		return false
	case []any:
		return len(value) > 0
	case map[string]any:
		return slices.ContainsFunc(slices.Collect(maps.Values(value)), hasValue)
	}
	return !reflect.ValueOf(value).IsZero()
}

// addUnknownFieldsOfChains adds one notice for all discovery chains: a newer Consul writes a new field into each of them.
func (b *snapshotBuild) addUnknownFieldsOfChains() {
	var services, fields []string
	for service, unknown := range b.unknownOfChains {
		services, fields = append(services, service.String()), append(fields, unknown...)
	}
	slices.Sort(services)
	slices.Sort(fields)
	b.addUnknownFields("discovery "+chainsOf(services), slices.Compact(fields))
}

// chainsOf names the chains of services: "chain of web", "chains of api and web", "chains of api, web and 998 others".
func chainsOf(services []string) string {
	if n := len(services); n > 3 {
		services = append(slices.Clone(services[:2]), fmt.Sprintf("%d others", n-2))
	}
	last := len(services) - 1
	if last < 1 {
		return "chain of " + strings.Join(services, "")
	}
	return "chains of " + strings.Join(services[:last], ", ") + " and " + services[last]
}

// addUnknownFields adds a notice that names the unknown fields of what is at where.
func (b *snapshotBuild) addUnknownFields(where string, fields []string) {
	if len(fields) > 0 {
		b.addProblemOf(problem.Notice, where,
			fmt.Sprintf("this Usher does not know %s, so it has no effect; see if a newer Usher does", strings.Join(fields, ", ")))
	}
}
