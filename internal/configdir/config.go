package configdir

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/problem"
)

// config is the content of a directory: what was read, and what is wrong.
type config struct {
	gateways   []*entry[ingressGateway]
	proxies    []*entry[proxyDefaults] // one at most
	services   []*entry[serviceDefaults]
	intentions []*entry[serviceIntentions]
	defs       []*definition

	problems Problems
}

// extensions are those of the files that are read.
var extensions = []string{".hcl", ".json", ".yaml", ".yml"}

// readable reports whether Usher reads an entry of this name, which then has to be a regular file.
// It ignores other names, so that the directory may hold notes, editors' copies, and the ..data of a
// Kubernetes volume.
func readable(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.Contains(extensions, filepath.Ext(name))
}

// readConfig reads the files of dir, not those of its subdirectories. The
// directory counts as a whole: when problems is not empty, nothing of it is
// to be used.
func readConfig(dir string) *config {
	c := &config{}
	listed, err := os.ReadDir(dir)
	if err != nil {
		c.unreadable(dir, err)
		return c
	}
	files := 0
	for _, f := range listed {
		if readable(f.Name()) {
			c.file(filepath.Join(dir, f.Name()))
			files++
		}
	}
	if files == 0 {
		c.problems = append(c.problems, problem.Problem{
			Where: dir,
			What:  "there is no file with the extension " + strings.Join(extensions, ", ") + " in it; write config entries and service definitions there",
		})
	}
	if len(c.problems) == 0 {
		c.check()
	}
	return c
}

func (c *config) unreadable(path string, err error) {
	if cause, ok := errors.AsType[*fs.PathError](err); ok {
		err = cause.Err
	}
	what := "cannot be read: " + err.Error() + "; mend it, or remove it"
	c.problems = append(c.problems, problem.Problem{Where: path, What: what})
}

func (c *config) file(path string) {
	text, err := filewatch.ReadFile(path)
	if err != nil {
		c.unreadable(path, err)
		return
	}
	err = c.text(path, bytes.TrimPrefix(text, []byte("\ufeff")))
	if problems, ok := errors.AsType[Problems](err); ok {
		c.problems = append(c.problems, problems...)
	} else if err != nil {
		c.unreadable(path, err)
	}
}

// text reads the documents of a file. Its errors are Problems.
func (c *config) text(path string, text []byte) error {
	// Whoever writes a file in place empties it first. Were that content, the
	// entries would be gone for a moment, and listeners with them.
	start := bytes.TrimSpace(text)
	if len(start) == 0 {
		return problemAt(place{path, 1}, "", "the file is empty; write an entry, or remove it")
	}
	switch ext := filepath.Ext(path); {
	case ext == ".yaml" || ext == ".yml":
		docs, err := parseYAML(path, text)
		for _, doc := range docs {
			c.yamlDocument(doc)
		}
		return err
	case ext == ".json" || start[0] == '{':
		root, err := parseJSON(path, text)
		if err == nil {
			c.document(root)
		}
		return err
	}
	root, err := parseHCL(path, text)
	if err == nil && len(root.fields) > 0 {
		c.document(root)
	}
	return err
}

// document reads one HCL or JSON document.
func (c *config) document(root *node) {
	d := &decoder{}
	switch {
	case root.kind != object:
		d.add(root.at, "", "%s is not allowed; write an object: a config entry with kind and name, or service definitions", root.describe())
	case root.get("apiVersion") != nil:
		c.customResource(root)
	case root.get("Kind") != nil:
		c.configEntry(root)
	case root.get("service") != nil || root.get("services") != nil:
		c.definitions(root)
	case isHelm(root):
		d.add(root.at, "", helmValues)
	default:
		d.add(root.at, "", "this is neither a config entry, which has kind and name, nor service definitions (service, services); write one of them, or remove it")
	}
	c.problems = append(c.problems, d.problems...)
}

// yamlDocument reads one YAML document: Consul writes custom resources in
// YAML, and nothing else.
func (c *config) yamlDocument(root *node) {
	d := &decoder{custom: true}
	switch {
	case root.kind == object && root.get("apiVersion") != nil && root.text("kind") == "List":
		c.resourceList(d, root)
	case root.kind == object && root.get("apiVersion") != nil:
		c.customResource(root)
	case isHelm(root):
		d.add(root.at, "", helmValues)
	default:
		d.add(root.at, "", "this document has no apiVersion and kind; in YAML write custom resources (%s), other entries and service definitions as HCL or JSON", customAPI)
	}
	c.problems = append(c.problems, d.problems...)
}

// resourceList reads what `kubectl get -o yaml` prints.
func (c *config) resourceList(d *decoder, root *node) {
	var l struct {
		APIVersion, Kind, Metadata ignored
		Items                      []*node
	}
	d.object(root, "", &l)
	for _, item := range l.Items {
		if item != nil { // null is like an empty document
			c.yamlDocument(item)
		}
	}
}

const helmValues = "these look like values for Consul's Helm chart, not config entries; move the file elsewhere, and write the entries here"

// isHelm recognises values of Consul's Helm chart, which lie beside the
// custom resources in many repositories.
func isHelm(root *node) bool {
	for _, key := range []string{"global", "ingressGateways", "connectInject", "meshGateway"} {
		if root.exactly(key) != nil {
			return true
		}
	}
	return false
}

// check applies the rules that concern several entries.
func (c *config) check() {
	d := &decoder{}
	for _, e := range c.services {
		if e.spec.MaxRequestHeadersKB != 0 && !c.isGateway(e.name) {
			e.problem(d, steps("MaxRequestHeadersKB"), "file mode honours it for an ingress gateway, and %q is none; remove it", e.name)
		}
	}
	for _, e := range c.gateways {
		c.checkProtocols(d, e)
	}
	c.problems = append(c.problems, d.problems...)
}

// checkProtocols applies Consul's rule that a listener other than tcp carries
// services of its own protocol.
func (c *config) checkProtocols(d *decoder, e *entry[ingressGateway]) {
	for i, l := range e.spec.Listeners {
		for k, s := range l.Services {
			if l.Protocol == "tcp" || s.Name == wildcard {
				continue
			}
			speaks, said := c.protocol(s.Name)
			if speaks == l.Protocol {
				continue
			}
			e.problem(d, steps("Listeners", i, "Services", k, "Name"),
				"%q speaks %s (%s), and the listener %s; set protocol = %q in its service-defaults entry, or change the listener's",
				s.Name, speaks, said, l.Protocol, l.Protocol)
		}
	}
}

// protocol gives what a service speaks and who says so: its service-defaults,
// else proxy-defaults, else it is tcp.
func (c *config) protocol(service string) (protocol, said string) {
	for _, e := range c.services {
		if e.name == service && e.spec.Protocol != "" {
			return e.spec.Protocol, "says " + e.place("Protocol").String()
		}
	}
	for _, e := range c.proxies {
		if e.spec.opaque.Protocol != "" {
			return protocolOf(e.spec.opaque.Protocol), "says " + e.place("Config", "protocol").String()
		}
	}
	return protocols[0], "the default"
}

// isGateway says whether there is an ingress gateway of this name.
func (c *config) isGateway(name string) bool {
	for _, e := range c.gateways {
		if e.name == name {
			return true
		}
	}
	for _, def := range c.defs {
		if def.Kind == kindIngressGateway && def.Name == name {
			return true
		}
	}
	return false
}
