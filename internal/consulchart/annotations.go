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
	// generated is true if the template writes lines that only Helm knows, such as {{ include }}.
	generated bool
}

// annotation is one annotation in the lines [from, to).
type annotation struct {
	key, value string
	from, to   int
	// templated is true if an action of the template is in it, or decides whether it is there.
	templated bool
}

// readAnnotations reads the text of a value. The line of the error is in the text.
func readAnnotations(text string) (*annotations, *configtree.SyntaxError) {
	masked := maskActions(text)
	a := &annotations{lines: splitLines(text), generated: masked.generated}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(strings.Join(masked.lines, "\n")), &doc); err != nil {
		bad := configtree.YAMLError(err)
		bad.What = "this is not YAML: " + bad.What
		return nil, bad
	}
	if doc.Kind == 0 || isNull(doc.Content[0]) {
		return a, nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode || root.Style&yaml.FlowStyle != 0 || root.Column != 1 {
		return nil, &configtree.SyntaxError{Mark: configtree.MarkOf(root), What: `the chart needs lines of the form "key: value", without indentation`}
	}
	for key, value := range configtree.Members(root) {
		from := key.Line - 1
		templated := strings.ContainsAny(key.Value+value.Value, marks) || value.Kind != yaml.ScalarNode || masked.depths[from] > 0
		a.entries = append(a.entries, annotation{key.Value, value.Value, from, len(masked.lines), templated})
	}
	for i := range a.entries {
		e := &a.entries[i]
		if i+1 < len(a.entries) {
			e.to = a.entries[i+1].from
		}
		for e.to > e.from+1 && isBetween(masked.lines[e.to-1]) {
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

var (
	// action matches an action of a template. A string in it may contain its end.
	action = regexp.MustCompile("(?s)\\{\\{(?:\"(?:[^\"\\\\]|\\\\.)*\"|`[^`]*`|[^\"`])*?\\}\\}")
	// keyword is the first word of an action.
	keyword = regexp.MustCompile(`^\{\{-?\s*(\w+|/\*|\$\w+\s*:?=|"\\n")`)
)

// These stand for actions while the text is read as YAML. Annotations do not contain these characters.
const (
	mark        = "\uE000" // for one that writes something
	controlMark = "\uE001" // for another one
	marks       = mark + controlMark
)

// maskedText is a text of which the actions are masked, so that it can be read as YAML.
type maskedText struct {
	lines     []string // those with nothing but actions are empty
	depths    []int    // how many blocks such as {{ if }} are open where the line begins
	generated bool
}

// maskActions masks the actions of a template.
func maskActions(text string) maskedText {
	var m maskedText
	opened := map[int]int{} // by line, how many blocks its actions open
	line, end := 0, 0
	for _, at := range action.FindAllStringIndex(text, -1) {
		line += strings.Count(text[end:at[0]], "\n")
		found := text[at[0]:at[1]]
		opened[line] += opens(found)
		line += strings.Count(found, "\n")
		end = at[1]
	}
	masked := action.ReplaceAllStringFunc(text, func(action string) string {
		as := mark
		if isControl(action) {
			as = controlMark
		}
		return as + strings.Repeat("\n", strings.Count(action, "\n"))
	})
	depth := 0
	for i, line := range strings.Split(strings.TrimRight(masked, "\n"), "\n") {
		m.depths = append(m.depths, depth)
		depth += opened[i]
		if strings.Trim(line, marks+" \t") == "" {
			m.generated = m.generated || strings.Contains(line, mark)
			line = ""
		}
		m.lines = append(m.lines, line)
	}
	return m
}

// opens returns how many blocks an action opens; -1 if it ends one.
func opens(action string) int {
	switch keywordOf(action) {
	case "if", "range", "with", "block", "define":
		return 1
	case "end":
		return -1
	}
	return 0
}

// isControl reports whether an action writes no annotation by itself.
func isControl(action string) bool {
	word := keywordOf(action)
	return opens(action) != 0 || word == "else" || word == "/*" || word == `"\n"` || strings.HasPrefix(word, "$")
}

func keywordOf(action string) string {
	if found := keyword.FindStringSubmatch(action); found != nil {
		return found[1]
	}
	return ""
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
	if strings.HasSuffix(strings.TrimRight(text, " \t\n"), "-}}") {
		text += `{{ "\n" }}` // -}} removes the line end that follows
	}
	if text != "" {
		text += "\n"
	}
	return text + line + "\n"
}
