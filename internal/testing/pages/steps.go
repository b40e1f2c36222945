package pages

import (
	"fmt"
	"regexp"
	"strings"
)

// step is a command of a block, and what the page shows of its output.
type step struct {
	command string
	output  string
	shown   bool // the page shows all of the output
}

// Commands returns the commands of the block, as a reader types them.
func (b Block) Commands() []string {
	if b.Lang != "sh" && b.Lang != "console" {
		return nil
	}
	steps, err := b.steps()
	if err != nil {
		return nil // Reader.Follow says what is wrong
	}
	var commands []string
	for _, s := range steps {
		commands = append(commands, s.command)
	}
	return commands
}

// steps returns the commands of a block of the language sh or console.
func (b Block) steps() ([]step, error) {
	var steps []step
	goesOn := false // the last line was not the end of a command
	for line := range strings.Lines(b.Text) {
		text := strings.TrimSuffix(line, "\n")
		command, prompt := strings.CutPrefix(text, "$ ")
		switch {
		case goesOn, b.Lang == "sh" && len(steps) > 0 && strings.HasPrefix(text, " "):
			steps[len(steps)-1].command += "\n" + text
		case b.Lang == "sh":
			if strings.TrimSpace(text) == "" || strings.HasPrefix(text, "#") {
				continue
			}
			command = text
			steps = append(steps, step{command: text})
		case prompt:
			steps = append(steps, step{command: command, shown: true})
		case len(steps) == 0:
			return nil, fmt.Errorf("%s: the first line of a console block begins with \"$ \"", b)
		default:
			steps[len(steps)-1].output += line
			continue
		}
		goesOn = endsOpen(text)
	}
	return steps, nil
}

// endsOpen reports whether a shell reads another line before it runs this one.
func endsOpen(line string) bool {
	line = strings.TrimRight(line, " ")
	return strings.HasSuffix(line, `\`) || strings.HasSuffix(line, "|") || strings.HasSuffix(line, "&&")
}

var blanks = regexp.MustCompile(`[ \t]+`)

// matches reports whether an output is what a page shows of it.
func matches(shown, output string) bool {
	var pattern strings.Builder
	for line := range strings.Lines(normal(shown)) {
		if line == "...\n" {
			pattern.WriteString(`(?:.*\n)*`)
			continue
		}
		pattern.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), `\.\.\.`, `.*`))
	}
	return regexp.MustCompile(`^` + pattern.String() + `$`).MatchString(normal(output))
}

// normal is a text with one blank for each run of them, none at the ends of lines, and no empty lines at its end.
func normal(text string) string {
	var lines strings.Builder
	for line := range strings.Lines(text) {
		lines.WriteString(strings.TrimRight(blanks.ReplaceAllString(line, " "), " \r\n") + "\n")
	}
	if trimmed := strings.TrimRight(lines.String(), "\n"); trimmed != "" {
		return trimmed + "\n"
	}
	return ""
}
