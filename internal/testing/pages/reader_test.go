//go:build e2e

package pages

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const session = `
~~~sh
mkdir here
~~~

Write ~here/file.yaml~:

~~~yaml
a: 'b'
~~~

~~~console
$ cd here; x="1  2"
$ cat file.yaml; echo "$x"
a: 'b'
1 ...
$ printf one
one
~~~

In a second terminal:

~~~console
$ cd here
$ cat file.yaml; read -r end </dev/zero
a: 'b'
~~~

In the second shell's place, this prints another file:

~~~sh
cat <missing>/file.yaml |
  tr b c
(exit 3)
~~~

Back in the first terminal:

~~~console
$ (echo "to stderr" >&2; exit 4)
to stderr
~~~

It prints:

~~~text
... stderr
~~~
`

// TestReader types commands that depend on each other, that fail, that write to a file, and one that does not end.
func TestReader(t *testing.T) {
	r := NewReader(t, Options{Replace: []string{"<missing>", "."}, Fails: map[string]int{
		"(exit 3)": 3, `(echo "to stderr" >&2; exit 4)`: 4,
	}})
	r.Follow(t, Parse("docs/page.md", ticked(session)))
	if got := r.Type(t, `pwd; cat file.yaml; echo "$x"`); !strings.HasSuffix(got, "/here\na: 'b'\n1  2\n") {
		t.Errorf("the first terminal prints %q", got)
	}
}

// TestReaderSeesDifferences wants a failure for another output, another exit status and a block that cannot be followed.
func TestReaderSeesDifferences(t *testing.T) {
	for what, page := range map[string]string{
		"another output":       "~~~console\n$ echo one\ntwo\n~~~\n",
		"an output not shown":  "~~~console\n$ echo one\n~~~\n",
		"a failure":            "~~~sh\n(exit 3)\n~~~\n",
		"another text":         "~~~sh\necho one\n~~~\n~~~text\ntwo\n~~~\n",
		"no file":              "~~~yaml\na: b\n~~~\n",
		"a text of no command": "~~~sh\necho one\n~~~\nIn a second terminal:\n~~~sh\nread -r end </dev/zero\n~~~\n~~~text\none\n~~~\n",
		"no directory":         "Write ~here/file.yaml~:\n\n~~~yaml\na: b\n~~~\n",
	} {
		if follows(t, ticked(page)) {
			t.Errorf("%s: the reader sees nothing wrong:\n%s", what, page)
		}
	}
	t.Setenv(failsToWant, "(exit 3)")
	if follows(t, ticked("~~~sh\ntrue\n~~~\n")) {
		t.Error("the reader does not see that no command of a page is the one that should fail")
	}
	if !follows(t, ticked("~~~sh\n(exit 3)\n~~~\n")) {
		t.Error("the reader does not follow a page with a command that should fail")
	}
	t.Setenv(failsToWant, "")
	if !follows(t, ticked("~~~console\n$ echo one\none\n~~~\n")) {
		t.Error("the reader does not follow a page that is right")
	}
}

// The variables with the page of a process that follows, and the command that should fail there, if any.
const (
	pageToFollow = "USHER_TEST_PAGE"
	failsToWant  = "USHER_TEST_FAILS"
)

// follows reports whether a reader can follow a page, in a process that a difference fails.
func follows(t *testing.T, page string) bool {
	t.Helper()
	reader := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFollowAPage$")
	reader.Env = append(os.Environ(), pageToFollow+"="+page)
	return reader.Run() == nil
}

// TestFollowAPage is the other process of TestReaderSeesDifferences; otherwise there is no page.
func TestFollowAPage(t *testing.T) {
	fails := map[string]int{}
	if command := os.Getenv(failsToWant); command != "" {
		fails[command] = 3
	}
	NewReader(t, Options{Fails: fails}).Follow(t, Parse("docs/page.md", os.Getenv(pageToFollow)))
}
