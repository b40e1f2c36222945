// Package consulchart reads values of the official Consul Helm chart, and makes the override that moves its ingress
// gateways to Usher:
//
//	values files ──Parse──> Values ──Override──> the values file for a second -f of "helm upgrade"
//
// The override sets one pod annotation, consul.hashicorp.com/proxy-config-map, and gives pods the time to drain. The
// chart's endpoints controller copies the annotation's JSON into the gateway's registration in Consul, and
// consul-dataplane starts Envoy with the bootstrap in there.
//
// The package knows the chart's values: their names, their defaults, and how Helm merges files of them. It neither runs
// Helm nor asks a cluster. What an operator should know about the values is in Values.Notices.
package consulchart

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
)

// File is a file of values. Its name is for messages.
type File struct {
	Name string
	Text []byte
}

// Values are the values of one or more files, merged as Helm merges several -f. Nodes keep the style in which they
// were written, so that Helm reads a part that is printed again as it read the original.
type Values struct {
	root  *yaml.Node // an object
	files map[*yaml.Node]string
	// ignored are parts of the files that Helm does not read.
	ignored []place
}

// place is a line of a file.
type place struct {
	file string
	line int
}

func (p place) String() string { return configtree.At(p.file, p.line) }

// Parse reads files of values. A later one wins: objects are merged, and everything else is replaced.
func Parse(files ...File) (*Values, error) {
	v := &Values{root: &yaml.Node{Kind: yaml.MappingNode}, files: map[*yaml.Node]string{}}
	for _, f := range files {
		p := parser{file: f, values: v}
		root, err := p.parse()
		if err != nil {
			return nil, err
		}
		merge(v.root, root)
	}
	return v, nil
}

// merge puts the members of an object into another one.
func merge(base, over *yaml.Node) {
	for key, value := range configtree.Members(over) {
		at := indexOf(base, key.Value)
		switch {
		case at < 0:
			base.Content = append(base.Content, key, value)
		case base.Content[at].Kind == yaml.MappingNode && value.Kind == yaml.MappingNode:
			merge(base.Content[at], value)
		default:
			base.Content[at-1], base.Content[at] = key, value
		}
	}
}

// indexOf returns the index of the value of an object's member in Content, or -1.
func indexOf(n *yaml.Node, name string) int {
	for i := 0; n != nil && n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return i + 1
		}
	}
	return -1
}

// member returns the key and the value of an object's member, or nil.
func member(n *yaml.Node, name string) (key, value *yaml.Node) {
	if at := indexOf(n, name); at >= 0 {
		return n.Content[at-1], n.Content[at]
	}
	return nil, nil
}

// find returns the key and the value at a path such as "global.tls.enabled", or nil.
func (v *Values) find(path string) (key, value *yaml.Node) { return findIn(v.root, path) }

func findIn(n *yaml.Node, path string) (key, value *yaml.Node) {
	value = n
	for name := range strings.SplitSeq(path, ".") {
		if key, value = member(value, name); value == nil {
			return nil, nil
		}
	}
	return key, value
}

// text returns the scalar at a path, or unset if there is none. A null is "", because it removes the chart's default.
func (v *Values) text(path, unset string) string {
	_, n := v.find(path)
	return textOf(n, unset)
}

func textOf(n *yaml.Node, unset string) string {
	switch {
	case n == nil || n.Kind != yaml.ScalarNode:
		return unset
	case isNull(n):
		return ""
	}
	return n.Value
}

// isTrue reports whether Helm's templates take the value at a path as true; unset is the chart's default.
func (v *Values) isTrue(path string, unset bool) bool {
	_, n := v.find(path)
	if n == nil {
		return unset
	}
	return isTrue(n)
}

// isTrue reports whether a Go template takes a value as true. Helm reads YAML 1.1, in which on and yes are booleans.
func isTrue(n *yaml.Node) bool {
	switch {
	case n.Kind != yaml.ScalarNode:
		return len(n.Content) > 0
	case isNull(n):
		return false
	case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return n.Value != ""
	}
	switch strings.ToLower(n.Value) {
	case "", "false", "off", "no", "n", "0", "0.0":
		return false
	}
	return true
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == configtree.Null }

// at returns the place of a node for messages.
func (v *Values) at(n *yaml.Node) place { return place{v.files[n], n.Line} }

// where returns the place and the path of a value for messages; the path alone if it is not in the files.
func (v *Values) where(path string) string {
	if key, _ := v.find(path); key != nil {
		return v.whereAt(key, path)
	}
	return path
}

// whereAt returns the place of a node and its path for messages.
func (v *Values) whereAt(n *yaml.Node, path string) string { return v.at(n).String() + ": " + path }

// Prefix returns how the names of the release's objects begin.
func (v *Values) Prefix(release string) string {
	name := cmp.Or(v.text("fullnameOverride", ""), v.text("global.name", ""))
	if name == "" {
		name = release + "-" + cmp.Or(v.text("nameOverride", ""), "consul")
	}
	return strings.TrimSuffix(name[:min(len(name), 63)], "-")
}

// SendsTokens reports whether the chart's ACLs are on: then Usher wants a token from an Envoy.
func (v *Values) SendsTokens() bool { return v.isTrue("global.acls.manageSystemACLs", false) }

// CAPathInPod returns the file with Consul's CA in the pods of the gateways; "" if they have none.
func (v *Values) CAPathInPod() string {
	external := v.isTrue("externalServers.enabled", false) && v.isTrue("externalServers.useSystemRoots", false)
	switch {
	case !v.isTrue("global.tls.enabled", false) || external:
		return ""
	case v.isTrue("global.secretsBackend.vault.enabled", false):
		return "/vault/secrets/serverca.crt"
	}
	return "/consul/tls/ca/tls.crt"
}

const gatewaysPath = "ingressGateways.gateways"

// gatewayValues is one item of ingressGateways.gateways.
type gatewayValues struct {
	name string     // also its service name in Consul
	node *yaml.Node // an object
}

// gateways returns the ingress gateways.
func (v *Values) gateways() ([]gatewayValues, error) {
	_, list := v.find(gatewaysPath)
	switch {
	case list == nil:
		return []gatewayValues{v.defaultGateway()}, nil
	case isNull(list):
		return nil, nil
	case list.Kind != yaml.SequenceNode:
		return nil, v.errorAt(list, "%s: %s is not allowed; use a list with an item for each gateway",
			gatewaysPath, configtree.Describe(list))
	}
	var gateways []gatewayValues
	for _, item := range list.Content {
		key, name := member(item, "name")
		switch twice := func(g gatewayValues) bool { return name != nil && g.name == name.Value }; {
		case item.Kind != yaml.MappingNode:
			return nil, v.errorAt(item, "%s: %s is not allowed; an item is an object with a name",
				gatewaysPath, configtree.Describe(item))
		case textOf(name, "") == "":
			return nil, v.errorAt(item, "%s: this gateway has no name, and the chart refuses it; give it a name", gatewaysPath)
		case slices.ContainsFunc(gateways, twice):
			return nil, v.errorAt(key, "%s: the gateway %q is already in the list, and the chart refuses two of one name; rename one",
				gatewaysPath, name.Value)
		}
		gateways = append(gateways, gatewayValues{name.Value, item})
	}
	return gateways, nil
}

// defaultGateway is the item that the chart's own list has.
func (v *Values) defaultGateway() gatewayValues {
	const name = "ingress-gateway"
	return gatewayValues{name, object("name", scalar(name))}
}

func (v *Values) errorAt(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s: %s", v.at(n), fmt.Sprintf(format, args...))
}

func scalar(text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: configtree.String, Value: text}
}

// object returns an object with one member.
func object(key string, value *yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{scalar(key), value}}
}
