package consulchart

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
	"github.com/usherproxy/usher/internal/problem"
)

const (
	defaultsPath    = "ingressGateways.defaults"
	annotationsPath = defaultsPath + ".annotations"
)

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
	var bad *configtree.SyntaxError
	if value.annotations, bad = readAnnotations(textOf(node, "")); bad != nil {
		at := v.at(node)
		if node.Style&yaml.LiteralStyle != 0 {
			at.line += bad.Line // the text begins in the line after the key
		}
		return value, fmt.Errorf("%s: %s: %s", at, path, bad.What)
	}
	return value, nil
}

// choose marks the gateways that get the bootstrap, and decides where the annotation goes.
func (b *overrideBuilder) choose(names []string) error {
	chosen, err := b.values.ChosenGateways(names)
	if err != nil {
		return err
	}
	for i, g := range b.gateways {
		b.gateways[i].chosen = slices.ContainsFunc(chosen, func(c GatewayConfig) bool { return c.Gateway == g.name })
		b.perItem = b.perItem || g.has()
	}
	b.perItem = b.perItem || len(names) > 0
	return nil
}

// ChosenGateways returns the gateways with these names, or all without names, in the order of the values and without
// their Config.
func (v *Values) ChosenGateways(names []string) ([]GatewayConfig, error) {
	gateways, err := v.gateways()
	if err != nil {
		return nil, err
	}
	if len(gateways) == 0 {
		return nil, fmt.Errorf("%s: the list is empty, so there is no gateway to move to Usher; add one", v.where(gatewaysPath))
	}
	var chosen []GatewayConfig
	var known []string
	for _, g := range gateways {
		known = append(known, g.name)
		if len(names) == 0 || slices.Contains(names, g.name) {
			chosen = append(chosen, v.gatewayConfig(g))
		}
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("--gateway %s: the values have no such gateway%s; use %s",
				name, problem.DidYouMean(name, known), strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

// gatewayConfig returns a gateway without its Config.
func (v *Values) gatewayConfig(g gatewayValues) GatewayConfig {
	c := GatewayConfig{Gateway: g.name}
	if v.isTrue("global.enableConsulNamespaces", false) {
		c.Namespace = v.ofGateway(g, "consulNamespace", "default")
	}
	if v.isTrue("global.adminPartitions.enabled", false) {
		c.Partition = v.text("global.adminPartitions.name", "default")
	}
	return c
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
	c := b.values.gatewayConfig(g.gatewayValues)
	c.Config = config
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
