package configdir

import (
	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// CheckFile returns what is wrong with one file of a directory. It leaves out the rules that concern several entries: the
// other ones may be in other files.
func CheckFile(path string) []problem.Problem {
	c := &config{}
	c.file(path)
	return c.problems
}

// CheckSettings returns what is wrong with Usher's settings in a file that is for a Consul: in proxy-defaults entries, as
// Kubernetes resources too, and in the definitions of gateways. Everything else in it is Consul's to check.
func CheckSettings(path string) []problem.Problem {
	c := &config{onlySettings: true}
	c.file(path)
	return c.problems
}

// CheckSettingsIn is CheckSettings for all files of a directory that Usher would read.
func CheckSettingsIn(dir string) []problem.Problem {
	c := &config{onlySettings: true}
	c.readDir(dir)
	return c.problems
}

// readSettings decodes Usher's settings in a document, wherever Consul would pass them on.
func readSettings(d *configtree.Decoder, root *yaml.Node) {
	if configtree.Text(root, "kind") == "List" {
		_, items := configtree.Get(root, "items")
		for _, item := range configtree.Elements(items) {
			readSettings(d, item)
		}
		return
	}
	d.Problems = append(d.Problems, settingsIn(d.File, root, "Config")...)
	_, spec := configtree.Get(root, "spec")
	d.Problems = append(d.Problems, settingsIn(d.File, spec, "Config")...)
	for _, name := range []string{"service", "services"} {
		_, services := configtree.Get(root, name)
		for _, service := range configtree.Elements(services) {
			_, proxy := configtree.Get(configtree.Single(service), "Proxy")
			d.Problems = append(d.Problems, settingsIn(d.File, configtree.Single(proxy), "Config")...)
		}
	}
}

// settingsIn returns the problems of Usher's settings in the opaque member of an object.
func settingsIn(file string, object *yaml.Node, member string) []problem.Problem {
	_, config := configtree.Get(object, member)
	p := proxyConfig{file: file, root: configtree.Single(config)}
	for key, value := range configtree.Members(p.root) {
		if key.Value == settings.Key {
			p.Usher = value
		}
	}
	_, problems := p.layer(settings.Layer{})
	all, _ := configtree.Plain(p.root).(map[string]any)
	misspelt := settings.CheckKeys("", all, nil)
	configtree.AtLines(file, p.root, member, misspelt)
	return append(problems, misspelt...)
}
