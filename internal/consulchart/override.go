package consulchart

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
	"github.com/usherproxy/usher/internal/problem"
)

const (
	// Annotation is the pod annotation whose JSON becomes the Proxy.Config of a gateway's registration.
	Annotation = "consul.hashicorp.com/proxy-config-map"
	// BootstrapKey is the key of Proxy.Config with the template that consul-dataplane makes Envoy's bootstrap from.
	BootstrapKey = "envoy_bootstrap_json_tpl"

	defaultsPath    = "ingressGateways.defaults"
	annotationsPath = defaultsPath + ".annotations"
)

// usherMark begins each template that Usher puts into an annotation. It is a comment of the template, so it does not
// reach Envoy, and tells Usher's templates from those of others.
const usherMark = "{{/* made by usher helm-values */}}"

// OverrideOptions say what the override is for.
type OverrideOptions struct {
	Template string   // of the bootstrap, as consul-dataplane reads it
	Gateways []string // that get the bootstrap; empty means all
	// GracePeriod is the least terminationGracePeriodSeconds of the gateways' pods. Longer ones stay.
	GracePeriod time.Duration
}

// Override is a values file for a second -f.
type Override struct {
	Text     string
	Gateways []GatewayConfig // those that get the bootstrap, in the order of the values
}

// GatewayConfig is what the override gives the pods of a gateway.
type GatewayConfig struct {
	Gateway              string
	Namespace, Partition string // of Consul Enterprise; empty without
	Config               string // the value of Annotation
}

// Override returns the override. It keeps what the values set: Helm replaces lists and strings whole, so the override
// repeats the ones that it changes.
func (v *Values) Override(o OverrideOptions) (*Override, error) {
	b := overrideBuilder{values: v, template: usherMark + o.Template, gracePeriod: int(math.Ceil(o.GracePeriod.Seconds()))}
	if err := b.read(); err != nil {
		return nil, err
	}
	if err := b.choose(o.Gateways); err != nil {
		return nil, err
	}
	if err := b.refuseDuplicates(); err != nil {
		return nil, err
	}
	return b.build()
}

// overrideBuilder makes an override.
type overrideBuilder struct {
	values      *Values
	template    string
	gracePeriod int // in seconds

	defaults  annotationValue
	gateways  []gatewayAnnotations
	perItem   bool // the annotation goes into the items of the list, and not into the defaults
	overrides []GatewayConfig
}

// annotationValue is a value with annotations.
type annotationValue struct {
	*annotations
	value *yaml.Node // nil if the values have none
	path  string
}

// has reports whether it has the annotation that the override sets.
func (a annotationValue) has() bool { return a.get(Annotation) != nil }

// gatewayAnnotations is a gateway with its own annotations.
type gatewayAnnotations struct {
	gatewayValues
	annotationValue
	chosen bool
}

// read reads all annotations of pods.
func (b *overrideBuilder) read() error {
	var err error
	_, node := b.values.find(annotationsPath)
	if b.defaults, err = b.values.readAnnotations(node, annotationsPath); err != nil {
		return err
	}
	gateways, err := b.values.gateways()
	if err != nil {
		return err
	}
	if len(gateways) == 0 {
		return fmt.Errorf("%s: the list is empty, so there is no gateway to put under Usher; add one",
			b.values.where(gatewaysPath))
	}
	for _, g := range gateways {
		_, node := member(g.node, "annotations")
		own, err := b.values.readAnnotations(node, fmt.Sprintf("%s[%s].annotations", gatewaysPath, g.name))
		if err != nil {
			return err
		}
		b.gateways = append(b.gateways, gatewayAnnotations{gatewayValues: g, annotationValue: own})
	}
	return nil
}

func (v *Values) readAnnotations(node *yaml.Node, path string) (annotationValue, error) {
	value := annotationValue{value: node, path: path}
	if node != nil && !isNull(node) && node.ShortTag() != configtree.String {
		return value, v.errorAt(node, "%s: %s is not allowed; the chart reads a text: write \"annotations: |\" and the lines below it",
			path, configtree.Describe(node))
	}
	var bad *textError
	if value.annotations, bad = readAnnotations(textOf(node, "")); bad != nil {
		at := v.at(node)
		if node.Style&yaml.LiteralStyle != 0 {
			at.line += bad.line // the text begins in the line after the key
		}
		return value, fmt.Errorf("%s: %s: %s", at, path, bad.what)
	}
	return value, nil
}

// choose marks the gateways that get the bootstrap, and decides where the annotation goes.
func (b *overrideBuilder) choose(names []string) error {
	known := make([]string, len(b.gateways))
	for i, g := range b.gateways {
		known[i] = g.name
		b.gateways[i].chosen = len(names) == 0 || slices.Contains(names, g.name)
		b.perItem = b.perItem || g.has()
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return fmt.Errorf("--gateway %s: the values have no such gateway%s; use %s",
				name, problem.DidYouMean(name, known), strings.Join(known, ", "))
		}
	}
	b.perItem = b.perItem || len(names) > 0
	return nil
}

// refuseDuplicates refuses values with which a pod would get the annotation twice: the chart puts the annotations of
// the defaults and of the gateway one after the other.
func (b *overrideBuilder) refuseDuplicates() error {
	for _, a := range append([]annotationValue{b.defaults}, b.own()...) {
		if a.count(Annotation) > 1 {
			return b.values.errorAt(a.value, "%s: %s is here twice; remove one of the two", a.path, Annotation)
		}
	}
	if !b.defaults.has() || !b.perItem {
		return nil
	}
	for _, g := range b.gateways {
		if g.has() {
			return b.values.errorAt(g.value, "%s: the gateway has %s here and in %s, and a pod cannot have it twice; "+
				"keep it in one place", g.path, Annotation, b.values.where(annotationsPath))
		}
	}
	return b.values.errorAt(b.defaults.value, "%s: all gateways get %s from here, and --gateway would give it to some of them "+
		"a second time; move it to the items of %s, or leave out --gateway", annotationsPath, Annotation, gatewaysPath)
}

// own returns the annotations of the single gateways.
func (b *overrideBuilder) own() []annotationValue {
	var own []annotationValue
	for _, g := range b.gateways {
		own = append(own, g.annotationValue)
	}
	return own
}

func (b *overrideBuilder) build() (*Override, error) {
	defaults, err := b.defaultsOverride()
	if err != nil {
		return nil, err
	}
	list, changed, err := b.list()
	if err != nil {
		return nil, err
	}
	root := &yaml.Node{Kind: yaml.MappingNode}
	if len(defaults.Content) > 0 {
		root.Content = append(root.Content, scalar("defaults"), defaults)
	}
	if changed {
		root.Content = append(root.Content, scalar("gateways"), list)
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(object("ingressGateways", root)); err != nil {
		return nil, err
	}
	return &Override{Text: out.String(), Gateways: b.overrides}, nil
}

// defaultsOverride returns what all gateways get, unless single ones do.
func (b *overrideBuilder) defaultsOverride() (*yaml.Node, error) {
	defaults := &yaml.Node{Kind: yaml.MappingNode}
	if b.perItem {
		return defaults, nil
	}
	config, err := b.config(b.defaults)
	if err != nil {
		return nil, err
	}
	for _, g := range b.gateways {
		b.add(g, config)
	}
	text, err := b.annotationsWith(b.defaults, config)
	if err != nil {
		return nil, err
	}
	defaults.Content = append(defaults.Content, scalar("annotations"), text)
	if b.values.defaultGracePeriod() < b.gracePeriod {
		set(defaults, gracePeriodKey, b.gracePeriodNode())
	}
	return defaults, nil
}

// list returns the whole list of gateways, and reports whether one differs from the values: Helm would replace the list.
func (b *overrideBuilder) list() (list *yaml.Node, changed bool, err error) {
	list = &yaml.Node{Kind: yaml.SequenceNode}
	for _, g := range b.gateways {
		item := *g.node
		item.Style &^= yaml.FlowStyle
		item.Content = slices.Clone(item.Content)
		list.Content = append(list.Content, &item)
		if !g.chosen {
			continue
		}
		if b.perItem {
			if err := b.annotate(&item, g); err != nil {
				return nil, false, err
			}
			changed = true
		}
		own := gracePeriodOf(g.node)
		if own != 0 && own < b.gracePeriod || own == 0 && b.perItem && b.values.defaultGracePeriod() < b.gracePeriod {
			set(&item, gracePeriodKey, b.gracePeriodNode())
			changed = true
		}
	}
	return list, changed, nil
}

// annotate gives a gateway of the list the annotation.
func (b *overrideBuilder) annotate(item *yaml.Node, g gatewayAnnotations) error {
	config, err := b.config(g.annotationValue)
	if err != nil {
		return err
	}
	b.add(g, config)
	text, err := b.annotationsWith(g.annotationValue, config)
	if err == nil {
		set(item, "annotations", text)
	}
	return err
}

// set sets a member of an object whose Content is its own.
func set(object *yaml.Node, name string, value *yaml.Node) {
	if at := indexOf(object, name); at >= 0 {
		object.Content[at] = value
		return
	}
	object.Content = append(object.Content, scalar(name), value)
}

const gracePeriodKey = "terminationGracePeriodSeconds"

func (b *overrideBuilder) gracePeriodNode() *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: configtree.Int, Value: strconv.Itoa(b.gracePeriod)}
}

// defaultGracePeriod returns terminationGracePeriodSeconds of a gateway that does not set it.
func (v *Values) defaultGracePeriod() int {
	const ofChart, ofKubernetes = 10, 30
	_, defaults := v.find(defaultsPath)
	if _, n := member(defaults, gracePeriodKey); n == nil {
		return ofChart
	}
	return cmp.Or(gracePeriodOf(defaults), ofKubernetes)
}

// gracePeriodOf returns terminationGracePeriodSeconds of an object. It returns 0 for none, and for what is no number:
// Kubernetes refuses that.
func gracePeriodOf(object *yaml.Node) int {
	_, n := member(object, gracePeriodKey)
	seconds, _ := strconv.Atoi(textOf(n, ""))
	return seconds
}

// add adds a gateway to the result.
func (b *overrideBuilder) add(g gatewayAnnotations, config string) {
	c := GatewayConfig{Gateway: g.name, Config: config}
	if b.values.isTrue("global.enableConsulNamespaces", false) {
		c.Namespace = b.values.ofGateway(g.gatewayValues, "consulNamespace", "default")
	}
	if b.values.isTrue("global.adminPartitions.enabled", false) {
		c.Partition = b.values.text("global.adminPartitions.name", "default")
	}
	b.overrides = append(b.overrides, c)
}

// annotationsWith returns the text of the annotations with the new one.
func (b *overrideBuilder) annotationsWith(a annotationValue, config string) (*yaml.Node, error) {
	n := scalar(a.with(Annotation, config))
	n.Style = yaml.LiteralStyle
	again, bad := readAnnotations(n.Value)
	if bad != nil || again.count(Annotation) != 1 || again.get(Annotation).value != config {
		return nil, b.values.errorAt(a.value, "%s: Usher cannot add an annotation to this text; write one line \"key: value\" for each annotation", a.path)
	}
	return n, nil
}

// config returns the new value of the annotation: what it has now, and the bootstrap.
func (b *overrideBuilder) config(a annotationValue) (string, error) {
	members := map[string]json.RawMessage{}
	existing := a.get(Annotation)
	if existing != nil {
		refuse := func(format string, args ...any) (string, error) {
			return "", b.values.errorAt(a.value, "%s: %s", a.path, Annotation+" "+fmt.Sprintf(format, args...))
		}
		if existing.templated {
			return refuse("depends on Helm's template actions, and Usher cannot add the bootstrap to it; write it without {{ }}")
		}
		if err := decodeConfig(existing.value, &members); err != nil {
			return refuse("is not a JSON object (%v), and consul-k8s ignores such a value; correct it, or remove it", err)
		}
		for key, value := range members {
			switch {
			case !strings.EqualFold(key, BootstrapKey):
			case isUshers(value):
				delete(members, key)
			default:
				return refuse("already has a bootstrap (%s) that usher helm-values did not make; remove that key, or leave this gateway out", key)
			}
		}
	}
	template, err := json.Marshal(b.template)
	if err != nil {
		return "", err
	}
	members[BootstrapKey] = template
	return encodeConfig(members), nil
}

// isUshers reports whether a value of BootstrapKey was made by Usher.
func isUshers(value json.RawMessage) bool {
	var template string
	return json.Unmarshal(value, &template) == nil && strings.HasPrefix(template, usherMark)
}

// decodeConfig decodes the annotation's value, as consul-k8s does.
func decodeConfig[V any](text string, into *map[string]V) error {
	err := json.Unmarshal([]byte(text), into)
	if err == nil && *into == nil {
		err = errors.New("it is null")
	}
	return err
}

// encodeConfig returns the members as one line of JSON that Helm's template, YAML and a YAML text in single quotes
// leave as it is: ASCII only, and without "{{". The dataplane reads \u007b\u007b in a string as "{{" again. A "}}" is
// not an action's begin, and two objects may end in one.
func encodeConfig(members map[string]json.RawMessage) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, key := range slices.Sorted(maps.Keys(members)) {
		if i > 0 {
			b.WriteString(", ")
		}
		name, _ := json.Marshal(key) // a string
		b.Write(name)
		b.WriteString(": ")
		var value bytes.Buffer
		_ = json.Compact(&value, members[key]) // it was decoded
		b.Write(value.Bytes())
	}
	b.WriteByte('}')
	return strings.ReplaceAll(toASCII(b.String()), "{{", `\u007b\u007b`)
}

// toASCII escapes the characters of a JSON text that YAML could read as something else, such as the line end U+0085.
func toASCII(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r >= ' ' && r <= '~' {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}
