package configdir

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// Problems is the error of a directory that cannot be used: everything that is wrong with it.
type Problems []problem.Problem

// Error returns one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// config is the content of a directory, and what is wrong with it. The directory counts as a whole: if there is a
// problem, nothing of it is used.
type config struct {
	gateways    []*entry[ingressGateway]
	proxies     []*entry[proxyDefaults] // one at most
	services    []*entry[serviceDefaults]
	intentions  []*entry[serviceIntentions]
	definitions []*entry[definition] // by service ID

	problems Problems

	onlySettings bool // nothing counts but Usher's settings
}

// extensions are those of the files that are read.
var extensions = []string{".hcl", ".json", ".yaml", ".yml"}

// isConfigFile reports whether Usher reads a file of this name, which then has to be a regular file. It ignores
// other names, so that the directory may hold notes, editors' copies, and the ..data of a Kubernetes volume.
func isConfigFile(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.Contains(extensions, filepath.Ext(name))
}

// readConfig reads the files of dir, not those of its subdirectories.
func readConfig(dir string) *config {
	c := &config{}
	c.readDir(dir)
	return c
}

func (c *config) readDir(dir string) {
	listed, err := os.ReadDir(dir)
	if err != nil {
		c.unreadable(dir, err)
		return
	}
	listed = slices.DeleteFunc(listed, func(f os.DirEntry) bool { return !isConfigFile(f.Name()) })
	for _, f := range listed {
		c.file(filepath.Join(dir, f.Name()))
	}
	if len(listed) == 0 {
		c.add(dir, "there is no file with the extension "+strings.Join(extensions, ", ")+" in it; "+
			"write config entries and service definitions there")
	}
	if len(c.problems) == 0 {
		c.check()
	}
}

func (c *config) file(path string) {
	if text, err := filewatch.ReadFile(path); err != nil {
		c.unreadable(path, err)
	} else {
		c.text(path, bytes.TrimPrefix(text, []byte("\ufeff")))
	}
}

func (c *config) add(where, what string) {
	c.problems = append(c.problems, problem.Problem{Where: where, What: what, At: problem.Position{File: where}})
}

func (c *config) unreadable(path string, err error) {
	c.add(path, filewatch.Unreadable(err, "correct it, or remove it"))
}

// text reads the documents of a file.
func (c *config) text(path string, text []byte) {
	// A program that writes a file in place empties it first. An empty file that counted would remove its entries
	// for a moment, and listeners with them.
	if len(bytes.TrimSpace(text)) == 0 {
		d := &configtree.Decoder{File: path}
		d.Add(configtree.Mark{Line: 1, Column: 1}, "", "the file is empty; write an entry, or remove it")
		c.problems = append(c.problems, d.Problems...)
		return
	}
	docs, bad := documentsOf(path, text)
	if bad != nil {
		c.problems = append(c.problems, *bad)
		return
	}
	read := c.document
	if isYAML(path) {
		read = c.yamlDocument
	}
	if c.onlySettings {
		read = readSettings
	}
	for _, doc := range docs {
		d := &configtree.Decoder{File: path}
		read(d, doc)
		c.problems = append(c.problems, d.Problems...)
	}
}

func documentsOf(path string, text []byte) ([]*yaml.Node, *problem.Problem) {
	if isYAML(path) {
		return configtree.ParseYAML(path, text)
	}
	root, bad := configtree.Parse(path, text)
	return []*yaml.Node{root}, bad
}

func isYAML(path string) bool { return slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(path)) }

// document reads one HCL or JSON document.
func (c *config) document(d *configtree.Decoder, root *yaml.Node) {
	has := func(name string) bool { key, _ := configtree.Get(root, name); return key != nil }
	switch {
	case root.Kind != yaml.MappingNode:
		d.Add(configtree.MarkOf(root), "", "%s is not allowed; write an object: a config entry with kind and name, or service definitions",
			configtree.Describe(root))
	case has("apiVersion"):
		c.resource(d, root)
	case has("Kind"):
		c.entry(d, root)
	case has("service") || has("services"):
		c.definitionsFile(d, root)
	case has("usher") || has("gateway"):
		d.Add(configtree.MarkOf(root.Content[0]), "", "these are Usher's settings; give the file with --config, and keep it out of this directory")
	case isHelm(d, root) || len(root.Content) == 0 && filepath.Ext(d.File) == ".hcl": // only comments
	default:
		d.Add(configtree.MarkOf(root), "", "this is neither a config entry, which has kind and name, "+
			"nor service definitions (service, services); write one of them, or remove it")
	}
}

// yamlDocument reads one YAML document. Consul writes custom resources in YAML, and nothing else.
func (c *config) yamlDocument(d *configtree.Decoder, root *yaml.Node) {
	version, _ := configtree.Get(root, "apiVersion")
	switch {
	case version != nil && configtree.Text(root, "kind") == "List":
		c.resourceList(d, root)
	case version != nil:
		c.resource(d, root)
	case isHelm(d, root):
	default:
		d.Add(configtree.MarkOf(root), "", "this document has no apiVersion and kind; in YAML write custom resources (%s), "+
			"other entries and service definitions as HCL or JSON", customAPI)
	}
}

// resourceList reads what `kubectl get -o yaml` prints.
func (c *config) resourceList(d *configtree.Decoder, root *yaml.Node) {
	var l struct {
		APIVersion, Kind, Metadata configtree.Ignored
		Items                      []*yaml.Node
	}
	d.Strict = true
	d.Object(root, "", &l)
	for _, item := range l.Items {
		if item != nil { // null is like an empty document
			one := &configtree.Decoder{File: d.File}
			c.yamlDocument(one, item)
			d.Problems = append(d.Problems, one.Problems...)
		}
	}
}

// isHelm reports values of Consul's Helm chart, which lie beside the custom resources in many repositories.
func isHelm(d *configtree.Decoder, root *yaml.Node) bool {
	for _, name := range []string{"global", "ingressGateways", "connectInject", "meshGateway"} {
		if key, _ := configtree.Get(root, name); key != nil && key.Value == name {
			d.Add(configtree.MarkOf(root), "", "these look like values for Consul's Helm chart, not config entries; "+
				"move the file elsewhere, and write the entries here")
			return true
		}
	}
	return false
}

// check applies the rules that concern several entries.
func (c *config) check() {
	for _, e := range c.services {
		if e.spec.MaxRequestHeadersKB != 0 && !slices.Contains(c.gatewayNames(), e.name) {
			e.add(steps("MaxRequestHeadersKB"), "in file mode it works for ingress gateways only, and %q is a service; remove it", e.name)
			c.problems = append(c.problems, e.decoder.Problems...)
		}
	}
	for _, e := range c.gateways {
		c.checkProtocols(e)
		c.problems = append(c.problems, e.decoder.Problems...)
	}
}

// checkProtocols applies Consul's rule that a listener other than tcp carries services of its own protocol.
func (c *config) checkProtocols(e *entry[ingressGateway]) {
	for i, l := range e.spec.Listeners {
		for k, s := range l.Services {
			protocol, setAt := c.protocol(s.Name)
			if l.Protocol == gateway.ProtocolTCP || s.Name == wildcard || protocol == l.Protocol {
				continue
			}
			e.add(steps("Listeners", i, "Services", k, "Name"),
				"the listener's protocol is %s, and that of %q is %s (%s); set protocol = %q in its service-defaults entry, or change the listener's",
				l.Protocol, s.Name, protocol, setAt, l.Protocol)
		}
	}
}

// protocol returns the protocol of a service and where it is set: in its service-defaults, else in proxy-defaults,
// else it is tcp.
func (c *config) protocol(service string) (protocol, setAt string) {
	if e := named(c.services, service); e.spec.Protocol != "" {
		return e.spec.Protocol, "set at " + e.at("Protocol")
	}
	if e := c.proxyDefaults(); e.spec.proxyConfig.Protocol != "" {
		return gateway.NormalProtocol(e.spec.proxyConfig.Protocol), "set at " + e.at("Config", "protocol")
	}
	return gateway.ProtocolTCP, "the default"
}

// proxyDefaults returns the proxy-defaults entry, or an empty one.
func (c *config) proxyDefaults() *entry[proxyDefaults] { return named(c.proxies, "global") }

// gatewayNames returns the names of the ingress gateways that an entry or a definition names, sorted.
func (c *config) gatewayNames() []string {
	var names []string
	for _, e := range c.gateways {
		names = append(names, e.name)
	}
	for _, def := range c.definitions {
		if def.spec.Kind == kindIngressGateway {
			names = append(names, def.spec.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// gatewayPlaces returns where the entries of gateways are, or else their definitions, by name.
func (c *config) gatewayPlaces() map[string]problem.Position {
	places := map[string]problem.Position{}
	for _, def := range c.definitions {
		if def.spec.Kind == kindIngressGateway {
			places[def.spec.Name] = def.namePlace()
		}
	}
	for _, e := range c.gateways {
		places[e.name] = e.namePlace()
	}
	return places
}
