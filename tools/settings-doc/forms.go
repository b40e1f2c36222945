package main

import (
	"bytes"
	"errors"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
)

// pair returns a block of settings of the config file, and the same as a patch for the custom resource ProxyDefaults.
func pair(hcl string) (string, error) {
	tree, err := parse(hcl)
	if err != nil {
		return "", err
	}
	text, err := encode(object("spec", object("config", tree)))
	return "```hcl\n" + hcl + "```\n\n```yaml\n" + text + "```\n", err
}

// flowYAML returns one setting of HCL as YAML in one line.
func flowYAML(hcl string) (string, error) {
	tree, err := parse(hcl)
	if err != nil {
		return "", err
	}
	tree.Content[1].Style |= yaml.FlowStyle
	text, err := encode(tree)
	return strings.TrimSpace(text), err
}

func parse(hcl string) (*yaml.Node, error) {
	tree, bad := configtree.Parse("example.hcl", []byte(hcl))
	if bad != nil {
		return nil, errors.New(bad.String())
	}
	return tree, nil
}

func object(key string, value *yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Value: key}, value}}
}

// encode writes every text with quotes: without them, Kubernetes reads words such as off and yes as booleans.
func encode(tree *yaml.Node) (string, error) {
	style(tree)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	err := e.Encode(tree)
	return b.String(), errors.Join(err, e.Close())
}

// style writes texts with quotes, and lists of texts and numbers in one line.
func style(n *yaml.Node) {
	isShort := n.Kind == yaml.SequenceNode
	for i, child := range n.Content {
		isShort = isShort && child.Kind == yaml.ScalarNode
		if n.Kind != yaml.MappingNode || i%2 == 1 {
			style(child)
		}
	}
	switch {
	case isShort:
		n.Style = yaml.FlowStyle
	case n.Kind == yaml.ScalarNode && n.Tag == configtree.String:
		n.Style = yaml.DoubleQuotedStyle
	}
}
