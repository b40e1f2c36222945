package consulchart

import (
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
)

// annotations are the annotations in a value of the chart: a text of YAML lines, which Helm first runs as a template.
type annotations struct {
	lines   []string
	entries []annotation
	// conditional is true if lines of the text are actions of the template, such as {{ if }}. What they do to the lines
	// around them is known to Helm only.
	conditional bool
	// generated is true if such a line writes annotations that only Helm knows, such as {{ include }}.
	generated bool
}

// textError is why a text of annotations cannot be read; line is in the text and starts at 1.
type textError struct {
	line int
	what string
}

// annotation is one annotation in the lines [from, to).
type annotation struct {
	key, value string
	from, to   int
	templated  bool // an action of the template is in it
}

// action matches an action of a template. A string in it may contain its end.
var action = regexp.MustCompile("(?s)\\{\\{(?:\"(?:[^\"\\\\]|\\\\.)*\"|`[^`]*`|[^\"`])*?\\}\\}")

// mark stands for an action while the text is read as YAML. Nobody writes this character in an annotation.
const mark = "\uE000"

// control matches an action that writes nothing by itself.
var control = regexp.MustCompile(`^\{\{-?\s*(if|else|end|with|range|define|block|break|continue|/\*|\$\w+\s*:?=)`)

// readAnnotations reads the text of a value.
func readAnnotations(text string) (*annotations, *textError) {
	a := &annotations{lines: splitLines(text)}
	masked := splitLines(action.ReplaceAllStringFunc(text, func(action string) string {
		return mark + strings.Repeat("\n", strings.Count(action, "\n"))
	}))
	for _, line := range a.lines {
		if first := action.FindString(line); first != "" && strings.HasPrefix(strings.TrimSpace(line), first) {
			a.generated = a.generated || !control.MatchString(first)
		}
	}
	for i, line := range masked {
		if strings.Trim(line, mark+" \t") == "" && strings.Contains(line, mark) {
			a.conditional = true
			masked[i] = ""
		}
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(strings.Join(masked, "\n")), &doc); err != nil {
		line, what := splitYAMLError(err)
		return nil, &textError{line, "this is not YAML: " + what}
	}
	if doc.Kind == 0 || isNull(doc.Content[0]) {
		return a, nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode || root.Style&yaml.FlowStyle != 0 || root.Column != 1 {
		return nil, &textError{root.Line, `the chart needs lines of the form "key: value", without indentation`}
	}
	for key, value := range configtree.Members(root) {
		templated := strings.Contains(key.Value+value.Value, mark) || value.Kind != yaml.ScalarNode
		a.entries = append(a.entries, annotation{
			key: key.Value, value: value.Value, from: key.Line - 1, to: len(masked), templated: templated,
		})
	}
	for i := range a.entries {
		e := &a.entries[i]
		if i+1 < len(a.entries) {
			e.to = a.entries[i+1].from
		}
		for e.to > e.from+1 && isBetween(masked[e.to-1]) {
			e.to--
		}
	}
	return a, nil
}

// isBetween reports whether a line belongs to no annotation: it is empty or a comment.
func isBetween(line string) bool {
	return strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#")
}

// splitLines splits a text into lines, without the end of the last one.
func splitLines(text string) []string {
	if text = strings.TrimRight(text, "\n"); text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// get returns the annotation with the key, or nil.
func (a *annotations) get(key string) *annotation {
	for i := range a.entries {
		if a.entries[i].key == key {
			return &a.entries[i]
		}
	}
	return nil
}

// count returns how many annotations have the key.
func (a *annotations) count(key string) (n int) {
	for _, e := range a.entries {
		if e.key == key {
			n++
		}
	}
	return n
}

// with returns the text with an annotation: in the lines of the one that has the key, or at the end.
func (a *annotations) with(key, value string) string {
	line := key + ": '" + strings.ReplaceAll(value, "'", "''") + "'"
	if e := a.get(key); e != nil {
		lines := append(append(append([]string(nil), a.lines[:e.from]...), line), a.lines[e.to:]...)
		return strings.Join(lines, "\n") + "\n"
	}
	text := strings.Join(a.lines, "\n")
	switch {
	case text == "":
	case strings.HasSuffix(strings.TrimRight(text, " \t"), "-}}"):
		text += `{{ "\n" }}` // -}} would remove a plain line end
	default:
		text += "\n"
	}
	return text + line + "\n"
}
