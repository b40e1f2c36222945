package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/resourcediff"
)

func renderCommand() *cobra.Command {
	var o viewOptions
	var format string
	var explain bool
	cmd := &cobra.Command{
		Use:   "render --gateway NAME",
		Short: "Print what the Envoy of a gateway would get.",
		Long: "Render reads Consul, or the files in --config-dir, as usher serve does, and prints all resources that an Envoy of\n" +
			"the gateway would get, by type and name. Private keys and other secrets are redacted. Problems are printed to\n" +
			"stderr. The exit status is 1 if a resource is held back or nothing can be rendered, else 0.",
		Example: "  usher render --gateway ingress-gateway --config usher.hcl\n" +
			"  usher render --gateway edge --config-dir gateways/ --envoy-version 1.34.2 -o json",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			print, ok := map[string]func(io.Writer, resourcediff.Resources) error{"yaml": printYAML, "json": printJSON}[format]
			if !ok {
				return fmt.Errorf("--output %q is unknown; use yaml or json", format)
			}
			if explain && format != "yaml" {
				return errors.New("--explain: JSON has no comments; use -o yaml")
			}
			v, err := o.view(cmd.Context())
			if err != nil {
				return err
			}
			incomplete := v.warn(cmd.ErrOrStderr())
			resources, err := v.resources()
			if err != nil {
				return err
			}
			if explain {
				if err := v.explain(cmd.OutOrStdout()); err != nil {
					return err
				}
			}
			if err := print(cmd.OutOrStdout(), resources); err != nil || !incomplete {
				return err
			}
			return errBadResult
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&explain, "explain", false, "Begin with comments that say, for each listener, which entry or setting decides what.")
	cmd.Flags().StringVarP(&format, "output", "o", "yaml", "Format: yaml or json.")
	return cmd
}

// printJSON prints the resources as one object with a list for each type.
func printJSON(w io.Writer, r resourcediff.Resources) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	byType := map[string][]resourcediff.Tree{}
	for _, t := range renderedTypes {
		byType[t.name] = listOf(r[t.URL()])
	}
	return encoder.Encode(byType)
}

// printYAML prints the resources as printJSON does, those first that refer to the others.
func printYAML(w io.Writer, r resourcediff.Resources) error {
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	var doc yaml.Node
	doc.Kind = yaml.MappingNode
	for _, t := range renderedTypes {
		var key, value yaml.Node
		key.SetString(t.name)
		if err := value.Encode(listOf(r[t.URL()])); err != nil {
			return err
		}
		doc.Content = append(doc.Content, &key, &value)
	}
	return encoder.Encode(&doc)
}

// listOf returns resources in the order of their names.
func listOf(byName map[string]resourcediff.Tree) []resourcediff.Tree {
	list := []resourcediff.Tree{}
	for _, name := range names(byName) {
		list = append(list, named(name, byName[name]))
	}
	return list
}

// named returns the tree of a resource, whose message has a name or is given it.
func named(name string, t resourcediff.Tree) map[string]any {
	object, _ := t.(map[string]any)
	if object["name"] == nil && object["cluster_name"] == nil {
		object["name"] = name
	}
	return object
}
