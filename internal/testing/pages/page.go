package pages

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Block is a code block of a page.
type Block struct {
	Page    string // its path in the repository
	Line    int    // of its first line, from 1
	Section string // the heading above it
	Lead    string // the last line of text above it in its section
	Lang    string // "" if the page names none
	Text    string // its lines, without the indentation of the block
}

// FirstLine names the block.
func (b Block) FirstLine() string {
	line, _, _ := strings.Cut(b.Text, "\n")
	return line
}

func (b Block) String() string { return fmt.Sprintf("%s:%d: %s", b.Page, b.Line, b.FirstLine()) }

var (
	fence     = regexp.MustCompile("^( *)```(.*)$")
	heading   = regexp.MustCompile(`^#+ (.*)$`)
	writeFile = regexp.MustCompile("\\b[Ww]rite\\b[^`]*`([^`\\s]+)`")
	terminal  = regexp.MustCompile(`\b[Ii]n (?:a|the) (\w+ terminal)\b`)
)

// file is the file whose content the block is, and "" if it is none.
func (b Block) file() string {
	if b.Lang == "sh" || b.Lang == "console" {
		return ""
	}
	if found := writeFile.FindStringSubmatch(b.Lead); found != nil {
		return found[1]
	}
	return ""
}

// terminal is the terminal that the page names for the block, and "" for the one in which the reader is.
func (b Block) terminal() string {
	if found := terminal.FindStringSubmatch(b.Lead); found != nil {
		return found[1]
	}
	return ""
}

// Parse returns the code blocks of a page.
func Parse(page, text string) []Block {
	var blocks []Block
	var open *Block
	var indent, section, lead string
	for i, line := range strings.Split(text, "\n") {
		found := fence.FindStringSubmatch(line)
		switch {
		case open != nil && found != nil && found[1] == indent && found[2] == "":
			blocks = append(blocks, *open)
			open, lead = nil, ""
		case open != nil:
			open.Text += strings.TrimPrefix(line, indent) + "\n"
		case found != nil:
			indent = found[1]
			open = &Block{Page: page, Line: i + 2, Section: section, Lead: lead, Lang: found[2]}
		case heading.MatchString(line):
			section, lead = heading.FindStringSubmatch(line)[1], ""
		case strings.TrimSpace(line) != "":
			lead = line
		}
	}
	return blocks
}

// Page returns the code blocks of a page, which is named by its path in the repository.
func Page(t testing.TB, page string) []Block {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testprocess.Root(t), page))
	if err != nil {
		t.Fatal(err)
	}
	return Parse(page, string(text))
}

// Only returns the one block of a list, for a test that runs one command.
func Only(t testing.TB, blocks []Block) Block {
	t.Helper()
	if len(blocks) != 1 {
		t.Fatalf("the test runs one block, and the page has %d: %v", len(blocks), blocks)
	}
	return blocks[0]
}

// Section returns the code blocks below a heading of a page, up to the next heading.
func Section(t testing.TB, page, section string) []Block {
	t.Helper()
	blocks := slices.DeleteFunc(Page(t, page), func(b Block) bool { return b.Section != section })
	if len(blocks) == 0 {
		t.Fatalf("%s has no code block below a heading %q", page, section)
	}
	return blocks
}

// Find returns the one code block of a page whose first line begins with a text. Of blocks with the same text, it is the first.
func Find(t testing.TB, page, beginning string) []Block {
	t.Helper()
	blocks := slices.DeleteFunc(Page(t, page), func(b Block) bool { return !strings.HasPrefix(b.Text, beginning) })
	blocks = slices.CompactFunc(blocks, func(a, b Block) bool { return a.Text == b.Text })
	if len(blocks) != 1 {
		t.Fatalf("%s has %d code blocks that begin with %q, want one", page, len(blocks), beginning)
	}
	return blocks
}
