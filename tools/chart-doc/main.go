// Command chart-doc writes the README of the Helm chart: the head that it is given, and a table of all values with the
// comments of values.yaml.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: chart-doc VALUES HEAD FILE")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write(values, head, file string) error {
	text, err := os.ReadFile(values)
	if err != nil {
		return err
	}
	page, err := os.ReadFile(head)
	if err != nil {
		return err
	}
	tables, err := tables(text)
	if err != nil {
		return fmt.Errorf("%s: %w", values, err)
	}
	return os.WriteFile(file, append(page, tables...), 0o644)
}

// tables returns the tables of all values, one for each section.
func tables(values []byte) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(values, &doc); err != nil {
		return nil, err
	}
	if doc.Kind == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("the file is not a mapping")
	}
	var w writer
	w.mapping("", doc.Content[0])
	return w.out.Bytes(), errors.Join(w.errs...)
}

type writer struct {
	out  bytes.Buffer
	errs []error
}

// mapping writes the rows of all keys in a mapping. A key with a comment is a row, and its value is the default. A
// mapping without a comment is written key by key.
func (w *writer) mapping(prefix string, m *yaml.Node) {
	for i := 0; i < len(m.Content); i += 2 {
		key, value := m.Content[i], m.Content[i+1]
		comment := w.section(key.HeadComment)
		path := prefix + key.Value
		isMapping := value.Kind == yaml.MappingNode && len(value.Content) > 0
		switch {
		case comment != "" && isMapping && hasComments(value):
			fmt.Fprintf(&w.out, "| `%s` | | %s |\n", path, comment)
			w.mapping(path+".", value)
		case comment != "":
			w.row(path, value, comment)
		case isMapping:
			w.mapping(path+".", value)
		default:
			w.errs = append(w.errs, fmt.Errorf("line %d: %s has no comment; add one that says what it does", key.Line, path))
		}
	}
}

// row writes one row.
func (w *writer) row(path string, value *yaml.Node, comment string) {
	var plain any
	if err := value.Decode(&plain); err != nil {
		w.errs = append(w.errs, err)
		return
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(plain); err != nil {
		w.errs = append(w.errs, fmt.Errorf("%s: %w", path, err))
		return
	}
	fmt.Fprintf(&w.out, "| `%s` | `%s` | %s |\n", path, strings.TrimSpace(text.String()), comment)
}

// heading is the first line of a section.
var heading = regexp.MustCompile(`^== (.*) ==$`)

// section writes the heading and the text of a section, if a comment begins one. It returns the rest of the comment:
// the last paragraph.
func (w *writer) section(comment string) string {
	paragraphs := paragraphs(comment)
	if len(paragraphs) == 0 {
		return ""
	}
	if title := heading.FindStringSubmatch(paragraphs[0]); title != nil {
		fmt.Fprintf(&w.out, "\n### %s\n\n", title[1])
		paragraphs = paragraphs[1:]
		for len(paragraphs) > 1 {
			fmt.Fprintf(&w.out, "%s\n\n", paragraphs[0])
			paragraphs = paragraphs[1:]
		}
		w.out.WriteString("| key | default | meaning |\n|---|---|---|\n")
	}
	return strings.Join(paragraphs, " ")
}

// paragraphs returns the paragraphs of a comment. An empty line of it ends one.
func paragraphs(comment string) []string {
	var all []string
	next := true
	for line := range strings.Lines(comment) {
		line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "#"))
		switch {
		case line == "":
			next = true
		case next:
			all, next = append(all, line), false
		default:
			all[len(all)-1] += " " + line
		}
	}
	return all
}

// hasComments reports whether a key in a mapping has a comment, at any depth.
func hasComments(m *yaml.Node) bool {
	for i := 0; i < len(m.Content); i += 2 {
		if m.Content[i].HeadComment != "" || m.Content[i+1].Kind == yaml.MappingNode && hasComments(m.Content[i+1]) {
			return true
		}
	}
	return false
}
