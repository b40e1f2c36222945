package main

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/usherproxy/usher/xds"
)

// The releases take the manual pages and completions that this test makes: go test ./cmd/usher -run TestManual -manual DIR.
var manualDir = flag.String("manual", "", "Directory in which the test of the manual pages and completions leaves them.")

// indented are the lines of a table in a help text. In Markdown, from which the pages are made, four spaces keep lines.
var indented = regexp.MustCompile(`(?m)(^ {2,}.*\n)+`)

func TestManualPagesAndCompletionsAreMadeFromTheCommands(t *testing.T) {
	dir := *manualDir
	if dir == "" {
		dir = t.TempDir()
	}
	root := rootCommand()
	writeManual(t, root, dir)
	read := func(name string) string {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	for _, cmd := range root.Commands() {
		if cmd.IsAvailableCommand() && cmd.Name() != "help" {
			name := "usher-" + cmd.Name()
			if page := read("man1/" + name + ".1"); !strings.Contains(page, "\n"+name+" - "+cmd.Short) {
				t.Errorf("%s(1) does not say what the command does", name)
			}
		}
	}
	if page := read("man1/usher-serve.1"); !strings.Contains(page, `\fB--connection-report-key-file\fP`) {
		t.Error("usher-serve(1) has no --connection-report-key-file")
	}
	if page := read("man1/usher-validate.1"); !strings.Contains(page, "\n.EX\nfile with ") {
		t.Error("usher-validate(1) does not keep the lines of a table")
	}
	for _, name := range []string{"usher.bash", "_usher", "usher.fish"} {
		if !strings.Contains(read("completions/"+name), "__complete") {
			t.Errorf("completions/%s does not ask usher", name)
		}
	}
}

// writeManual writes the manual pages, and the completions of three shells. They are the same on all machines.
func writeManual(t *testing.T, root *cobra.Command, dir string) {
	t.Helper()
	pages, completions := filepath.Join(dir, "man1"), filepath.Join(dir, "completions")
	for _, d := range []string{pages, completions} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root.InitDefaultCompletionCmd()
	root.DisableAutoGenTag = true
	setDefaultsOfNoMachine(t, root)
	for _, cmd := range root.Commands() {
		cmd.Long = indented.ReplaceAllStringFunc(cmd.Long, func(lines string) string {
			return "\n  " + strings.ReplaceAll(strings.TrimSuffix(lines, "\n"), "\n", "\n  ") + "\n\n"
		})
	}
	header := doc.GenManHeader{Section: "1", Source: "Usher", Manual: "Usher Manual"} // the date is SOURCE_DATE_EPOCH
	for _, err := range []error{
		doc.GenManTree(root, &header, pages),
		root.GenBashCompletionFileV2(filepath.Join(completions, "usher.bash"), true),
		root.GenZshCompletionFile(filepath.Join(completions, "_usher")),
		root.GenFishCompletionFile(filepath.Join(completions, "usher.fish"), true),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// setDefaultsOfNoMachine replaces the defaults that follow from the file limit of this machine.
func setDefaultsOfNoMachine(t *testing.T, root *cobra.Command) {
	t.Helper()
	serve, _, err := root.Find([]string{"serve"})
	if err != nil {
		t.Fatal(err)
	}
	serve.Flags().Lookup("max-connections").DefValue = strconv.Itoa(xds.DefaultLimits.Connections)
	serve.Flags().Lookup("max-connections-per-peer").DefValue = strconv.Itoa(xds.DefaultLimits.ConnectionsPerPeer)
}
