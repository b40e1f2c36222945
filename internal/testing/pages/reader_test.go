//go:build e2e

package pages

import (
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const session = `
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
