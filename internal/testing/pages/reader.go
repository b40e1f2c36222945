//go:build e2e

package pages

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Options say where a reader is.
type Options struct {
	// Shell is the machine of the reader: its Host and Env, and the command that runs a shell there, which reads commands
	// from its input. Without a Path, it is bash where the test runs, in a directory that ends with the test.
	Shell testprocess.Command
	// Elsewhere has the shells on other machines, by what the line before a block says of them, such as "On a client".
	Elsewhere map[string]testprocess.Command
	// Replace has pairs: what a page says, and what the reader types and sees instead.
	Replace []string
	// Fails has the exit status of each command that should fail, by the command as the page has it.
	Fails map[string]int
}

// Reader follows pages: it types commands into the terminals of one machine.
type Reader struct {
	options   Options
	replacer  *strings.Replacer
	terminals map[string]*shell
	last      string          // what the last command has printed; "" if it may go on
	failed    map[string]bool // the commands of Options.Fails that were typed
}

// NewReader returns a reader who has no terminal open yet. Its terminals end with the test.
func NewReader(t *testing.T, o Options) *Reader {
	t.Helper()
	o.Shell = withShell(t, o.Shell)
	o.Elsewhere = maps.Clone(o.Elsewhere)
	for on, c := range o.Elsewhere {
		o.Elsewhere[on] = withShell(t, c)
	}
	r := &Reader{options: o, replacer: strings.NewReplacer(o.Replace...), terminals: map[string]*shell{}, failed: map[string]bool{}}
	t.Cleanup(func() {
		for command := range o.Fails {
			if !r.failed[command] && !t.Failed() {
				t.Errorf("the test expects that %q fails, and no page that it follows has this command", command)
			}
		}
	})
	return r
}

// withShell is a command that runs a shell.
func withShell(t *testing.T, c testprocess.Command) testprocess.Command {
	t.Helper()
	if c.Path == "" {
		c.Path = testprocess.Debian(t, "bash", "bash")
		c.Args = []string{"-c", `export HOME=$0 && cd && exec bash`, testprocess.NewDir(t)}
	}
	return c
}

// Follow does what the blocks say, one after the other. It ends at the first command that fails.
func (r *Reader) Follow(t *testing.T, blocks []Block) {
	t.Helper()
	for _, b := range blocks {
		t.Log(b)
		b.Text = r.replacer.Replace(b.Text)
		switch {
		case b.Lang == "sh", b.Lang == "console":
			r.run(t, b)
		case b.file() != "":
			r.write(t, b)
		case b.Lang == "text" && r.last != "":
			if !matches(b.Text, r.last) {
				t.Errorf("%s: the command printed\n%s\nwant\n%s", b, r.last, b.Text)
			}
		default:
			t.Fatalf("%s: there is nothing to do with a block of %q here: see the comment of package pages", b, b.Lang)
		}
	}
}

// Type types a command of the test's own into the first terminal, and returns what it prints.
func (r *Reader) Type(t *testing.T, command string) string {
	t.Helper()
	return r.shell(t, firstTerminal).run(t, step{command: command}, 0)
}

func (r *Reader) run(t *testing.T, b Block) {
	t.Helper()
	steps, err := b.steps()
	if err != nil {
		t.Fatal(err)
	}
	name, mayGoOn := r.terminal(b)
	sh := r.shell(t, name)
	for i, s := range steps {
		if mayGoOn && i == len(steps)-1 {
			sh.begin(t, s)
			r.last = ""
			continue
		}
		r.last = sh.run(t, s, r.exitStatus(s.command))
	}
}

// exitStatus is the one that a command should have. Commands that differ on the pages may be the same one here.
func (r *Reader) exitStatus(command string) int {
	want := 0
	for onPage, status := range r.options.Fails {
		if r.replacer.Replace(onPage) == command {
			r.failed[onPage], want = true, status
		}
	}
	return want
}

func (r *Reader) write(t *testing.T, b Block) {
	t.Helper()
	path := r.replacer.Replace(b.file())
	r.Type(t, fmt.Sprintf("printf %%s %s >%s", quote(b.Text), quote(path)))
}

const firstTerminal = "first terminal"

// terminal names the terminal that a block is for, and says whether its last command may go on.
func (r *Reader) terminal(b Block) (name string, mayGoOn bool) {
	for on := range r.options.Elsewhere {
		if strings.Contains(b.Lead, on) {
			return on, false
		}
	}
	if name := b.terminal(); name != "" {
		return name, name != firstTerminal
	}
	return firstTerminal, false
}

// shell returns a terminal of the reader.
func (r *Reader) shell(t *testing.T, name string) *shell {
	t.Helper()
	if r.terminals[name] == nil {
		command := r.options.Shell
		if elsewhere, ok := r.options.Elsewhere[name]; ok {
			command = elsewhere
		}
		r.terminals[name] = startShell(t, command, name)
	}
	return r.terminals[name]
}

// shell is a shell in which one command runs at a time.
type shell struct {
	process *testprocess.Process
	input   *os.File
	printed int // bytes of its output that belong to commands that have ended
	running bool
}

func startShell(t *testing.T, c testprocess.Command, name string) *shell {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { write.Close() })
	defer read.Close()
	c.Name, c.Stdin = cmp.Or(c.Name, "shell")+", "+name, read
	sh := &shell{process: testprocess.Start(t, c), input: write}
	sh.send(t, "exec 2>&1")
	return sh
}

func (s *shell) send(t *testing.T, line string) {
	t.Helper()
	if _, err := fmt.Fprintln(s.input, line); err != nil {
		t.Fatal(err)
	}
}

// status is what a shell prints after each command.
var status = regexp.MustCompile(`\x1e(\d+)\x1e\n`)

// start begins a command. Its input is empty, because the shell's is the commands to come.
func (s *shell) start(t *testing.T, command string) {
	t.Helper()
	if s.running {
		t.Fatalf("%s: the command before this one has not ended: %s", s.process.Name, command)
	}
	s.running = true
	s.send(t, fmt.Sprintf("eval %s </dev/null; printf '\\036%%d\\036\\n' $?", quote(command)))
}

// output returns what the command that runs has printed, and its exit status once it has one.
func (s *shell) output(t *testing.T) (text string, code int, ended bool) {
	t.Helper()
	text = testprocess.ReadFile(t, s.process.Stdout)[s.printed:]
	found := status.FindStringSubmatchIndex(text)
	if found == nil {
		return text, 0, false
	}
	code, err := strconv.Atoi(text[found[2]:found[3]])
	if err != nil {
		t.Fatal(err)
	}
	return text[:found[0]], code, true
}

// commandDeadline is the longest that a command may take: helm waits for the hooks of a chart.
const commandDeadline = 4 * time.Minute

// run runs a command to its end.
func (s *shell) run(t *testing.T, c step, want int) string {
	t.Helper()
	s.start(t, c.command)
	var text string
	var code int
	testprocess.Eventually(t, c.command, commandDeadline, func() error {
		var ended bool
		if text, code, ended = s.output(t); !ended {
			return errors.Join(fmt.Errorf("it has not ended, and has printed:\n%s", text), s.process.Alive())
		}
		return nil
	})
	s.printed, s.running = len(testprocess.ReadFile(t, s.process.Stdout)), false
	if code != want {
		t.Fatalf("%s\nexit status %d, want %d:\n%s", c.command, code, want, text)
	}
	if c.shown && !matches(c.output, text) {
		t.Errorf("%s\nprinted\n%s\nwant\n%s", c.command, text, c.output)
	}
	return text
}

// begin starts a command that may go on, and waits until it has printed what the page shows of it.
func (s *shell) begin(t *testing.T, c step) {
	t.Helper()
	s.start(t, c.command)
	testprocess.Eventually(t, c.command, testprocess.StartDeadline, func() error {
		text, code, ended := s.output(t)
		switch {
		case ended && code != 0:
			return testprocess.Permanent(fmt.Errorf("exit status %d:\n%s", code, text))
		case c.shown && !matches(c.output, text):
			return errors.Join(fmt.Errorf("it printed\n%s\nwant\n%s", text, c.output), s.process.Alive())
		case ended:
			s.printed, s.running = len(testprocess.ReadFile(t, s.process.Stdout)), false
		}
		return nil
	})
}

// quote is a text as one word of a shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
