package consulchart

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/usherproxy/usher/internal/configtree"
	"github.com/usherproxy/usher/internal/problem"
)

// Notices returns what an operator should know about the values, because nothing else says it: Helm ignores unknown
// keys, and some combinations fail long after the upgrade. chart is the version of the chart that a flag names, or "".
// The error is that of a version that is none.
func (v *Values) Notices(chart string) ([]problem.Problem, error) {
	parsed, err := v.chartVersion(chart)
	if err != nil {
		return nil, err
	}
	n := &notices{values: v, chart: parsed}
	n.documents()
	n.chartNotices()
	n.keys(v.root, "", "")
	n.edition()
	n.disabled()
	if n.gateways, err = v.gateways(); err != nil {
		return nil, err
	}
	n.services()
	n.nodePorts()
	n.annotationTexts()
	return n.list, nil
}

// notices collects the notices about values.
type notices struct {
	values   *Values
	chart    chartVersion
	gateways []gatewayValues
	list     []problem.Problem
}

func (n *notices) add(where, format string, args ...any) {
	n.list = append(n.list, problem.Problem{Where: where, What: fmt.Sprintf(format, args...)})
}

// documents reports what follows the first document of a file.
func (n *notices) documents() {
	for _, p := range n.values.ignored {
		n.add(p.String(), "Helm reads only the first YAML document of a file of values; remove the --- or the rest")
	}
}

// chartNotices reports versions that Usher is not made for, and a Consul that does not go with the chart.
func (n *notices) chartNotices() {
	if n.chart.known && n.chart.Major() > newest.Major() {
		n.add(n.chart.from, "Usher is tested with charts up to %s, and this is %s; run usher helm-values --check after the upgrade",
			newest, n.chart)
	}
	const dataplanePath = "global.imageConsulDataplane"
	if dataplane := n.values.imageVersion(dataplanePath); dataplane.known && dataplane.LessThan(firstDataplane) {
		n.add(dataplane.from, "consul-dataplane %s starts an Envoy before 1.25, which ends if it does not know a field of the bootstrap; use %s or later",
			dataplane, firstDataplane)
	}
	if consul := n.values.imageVersion("global.image"); consul.known {
		n.pair(consul)
	}
}

// pair reports a Consul that does not go with the chart.
func (n *notices) pair(consul chartVersion) {
	has := minor(consul.Version)
	charts := chartsOfConsul(has)
	switch wants := consulOfChart[minor(n.chart.Version)]; {
	case has == wants || wants == "":
	case !n.chart.known && charts != "":
		n.add(consul.from, "Consul %s goes with chart %s, and Helm installs the newest chart without --version; "+
			"name the chart in use with --chart-version", has, charts)
	case n.chart.known:
		remedy := "use an image of Consul " + wants
		if charts != "" {
			remedy += ", or chart " + charts
		}
		n.add(consul.from, "Consul %s does not go with chart %s; %s", has, n.chart, remedy)
	}
}

// firstDataplane is the first consul-dataplane whose Envoy knows every field of the bootstrap.
var firstDataplane = version.MustParseGeneric("1.1.0")

// keys reports the members of an object that no chart reads. The path in knownKeys has no indexes of lists.
func (n *notices) keys(object *yaml.Node, path, shown string) {
	known, checked := knownKeys[path]
	for key, value := range configtree.Members(object) {
		at, shownAt := join(path, key.Value), join(shown, key.Value)
		where := n.values.whereAt(key, shownAt)
		switch reason := ignoredKeys[at]; {
		case reason != "":
			n.add(where, "the chart ignores this key: %s; remove it", reason)
		case n.lacks(at):
			n.add(where, "chart %s does not have this key and ignores it; remove it", n.chart)
		case checked && !slices.Contains(known, key.Value) && !isNoValue(key.Value) && !isOnlyInCharts(at):
			n.add(where, "the chart does not know this key and ignores it%s; correct it, or remove it", n.suggestion(key.Value, path, known))
		}
		if value.Kind == yaml.MappingNode {
			n.keys(value, at, shownAt)
		}
		for i, item := range value.Content {
			if value.Kind == yaml.SequenceNode && item.Kind == yaml.MappingNode && at == gatewaysPath {
				n.keys(item, at, fmt.Sprintf("%s[%d]", shownAt, i))
			}
		}
	}
}

// suggestion returns the key that was probably meant.
func (n *notices) suggestion(key, path string, known []string) string {
	if near := problem.DidYouMean(key, known); near != "" {
		return near
	}
	if home := homeOf(key, path); home != "" {
		return fmt.Sprintf(" (did you mean %q?)", home+"."+key)
	}
	if path == "" && key == "consul" {
		return " (the values of a chart that has Consul's as a dependency are not read; give usher the part below consul)"
	}
	return ""
}

func isOnlyInCharts(path string) bool {
	_, only := onlyInCharts[path]
	return only
}

// lacks reports whether the chart in use is known to lack a key that other charts have.
func (n *notices) lacks(path string) bool {
	only := onlyInCharts[path]
	compare := func(to string, result int) bool {
		c, err := n.chart.Compare(cmp.Or(to, "0.0"))
		return to != "" && err == nil && c == result
	}
	chart := minor(n.chart.Version)
	return only.lackedUntil != "" && (chart == only.lackedUntil || compare(only.lackedUntil, -1)) ||
		only.lackedFrom != "" && (chart == only.lackedFrom || compare(only.lackedFrom, 1))
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// edition reports values of Consul Enterprise with an image of the community edition, and the reverse.
func (n *notices) edition() {
	const path = "global.image"
	image := n.values.text(path, "hashicorp/consul:"+newest.String())
	repository, tag := splitImage(image)
	enterprise := strings.Contains(repository, "enterprise") || strings.Contains(tag, "-ent")
	community := !enterprise && (repository == "consul" || strings.HasSuffix(repository, "hashicorp/consul"))
	license := n.values.text("global.enterpriseLicense.secretName", "") != ""
	if enterprise && !license && !n.values.isTrue("global.secretsBackend.vault.enabled", false) {
		n.add(n.values.where(path), "%s is Consul Enterprise, which does not start without a license; set global.enterpriseLicense", image)
	}
	if !community {
		return
	}
	const advice = "%s is the community edition, which %s; %s, or use an image with -ent"
	if n.values.isTrue("global.enableConsulNamespaces", false) {
		n.add(n.values.where("global.enableConsulNamespaces"), advice, image, "has no namespaces, so the chart's Job server-acl-init fails",
			"set it to false")
	}
	if n.values.isTrue("global.adminPartitions.enabled", false) {
		n.add(n.values.where("global.adminPartitions.enabled"), advice, image, "has no admin partitions", "set it to false")
	}
	if license {
		n.add(n.values.where("global.enterpriseLicense.secretName"), advice, image, "needs no license", "set it and secretKey to null")
	}
}

// disabled reports values with which no gateway runs.
func (n *notices) disabled() {
	v := n.values
	if !v.isTrue("ingressGateways.enabled", false) {
		n.add(v.where("ingressGateways.enabled"), "it is not true, so the chart makes no ingress gateways and the override has no effect; set it to true")
	}
	if !v.isTrue("connectInject.enabled", true) {
		n.add(v.where("connectInject.enabled"), "it is not true, and then the chart refuses ingress gateways; set it to true")
	}
	if _, replicas := v.find("ingressGateways.defaults.replicas"); replicas != nil && !isTrue(replicas) {
		n.add(v.where("ingressGateways.defaults.replicas"), "it is %s, so gateways without replicas of their own run no pods; set it to 1 or more",
			configtree.Describe(replicas))
	}
}

// services reports a gateway whose load balancer sends no PROXY header, and replicas that the chart ignores.
func (n *notices) services() {
	v := n.values
	_, defaults := v.find("ingressGateways.defaults.service.annotations")
	for i, g := range n.gateways {
		path := gatewayPath(i)
		if key, replicas := member(g.node, "replicas"); replicas != nil && !isTrue(replicas) {
			n.add(v.whereAt(key, path+".replicas"), "the chart takes %s here as not set and uses ingressGateways.defaults.replicas; "+
				"set that to 0, or remove the gateway", configtree.Describe(replicas))
		}
		if v.ofGateway(g, "service.type", "ClusterIP") != "LoadBalancer" {
			continue
		}
		_, own := findIn(g.node, "service.annotations")
		text := textOf(defaults, "") + "\n" + textOf(own, "")
		if !mentionsProxy(text) {
			n.add(n.whereOf(g, path, "service.annotations"), "the Service of the gateway %q has no annotation with which its load balancer sends "+
				"PROXY headers, so services do not get the client's address; add your cloud's annotation when the gateway's pods use Usher", g.name)
		}
	}
}

// gatewayPath returns the path of an item of the list of gateways.
func gatewayPath(i int) string { return fmt.Sprintf("%s[%d]", gatewaysPath, i) }

// mentionsProxy reports whether a line of annotations, not a comment, sets PROXY protocol in some cloud's words.
func mentionsProxy(text string) bool {
	for line := range strings.Lines(text) {
		line = strings.ToLower(strings.TrimSpace(line))
		for _, word := range []string{"proxy-protocol", "proxyprotocol", "proxy_protocol", "ppv2", "send-proxy", "pool-protocol"} {
			if !strings.HasPrefix(line, "#") && strings.Contains(line, word) {
				return true
			}
		}
	}
	return false
}

// ofGateway returns a scalar of a gateway: its own, that of the defaults, or the chart's.
func (v *Values) ofGateway(g gatewayValues, path, unset string) string {
	_, own := findIn(g.node, path)
	return cmp.Or(textOf(own, ""), v.text(defaultsPath+"."+path, unset))
}

// whereOf returns where a gateway has a value: its own, or the one of the defaults, or the gateway.
func (n *notices) whereOf(g gatewayValues, itemPath, path string) string {
	if key, _ := findIn(g.node, path); key != nil {
		return n.values.whereAt(key, itemPath+"."+path)
	}
	defaults := defaultsPath + "." + path
	if key, _ := n.values.find(defaults); key != nil {
		return n.values.where(defaults)
	}
	return itemPath + "." + path
}

// nodePorts reports a port of the nodes that two gateways want.
func (n *notices) nodePorts() {
	taken := map[string]string{} // gateways by port
	for i, g := range n.gateways {
		if n.values.ofGateway(g, "service.type", "ClusterIP") != "NodePort" {
			continue
		}
		_, ports := findIn(g.node, "service.ports")
		if ports == nil || !isTrue(ports) {
			_, ports = n.values.find("ingressGateways.defaults.service.ports")
		}
		if ports == nil {
			continue
		}
		for _, port := range ports.Content {
			_, nodePort := member(port, "nodePort")
			number := textOf(nodePort, "")
			if other := taken[number]; number != "" && other != "" {
				n.add(n.values.whereAt(nodePort, gatewayPath(i)),
					"the gateways %q and %q both want the nodePort %s, and Kubernetes gives it to one; give each gateway its own service.ports",
					other, g.name, number)
			}
			taken[number] = g.name
		}
	}
}

// annotationTexts reports annotations that Usher cannot see.
func (n *notices) annotationTexts() {
	check := func(node *yaml.Node, path string) {
		if a, bad := readAnnotations(textOf(node, "")); bad == nil && a.generated {
			n.add(n.values.whereAt(node, path), "Helm's template writes annotations here that Usher cannot see; "+
				"check that none of them is %s, because a pod cannot have it twice", Annotation)
		}
	}
	if _, node := n.values.find(annotationsPath); node != nil {
		check(node, annotationsPath)
	}
	for i, g := range n.gateways {
		if _, node := member(g.node, "annotations"); node != nil {
			check(node, gatewayPath(i)+".annotations")
		}
	}
}
