package messages

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

const source = `package p

const cure = "; correct it"

func f(name string) {
	_ = fmt.Errorf("gateway %q: there is none"+cure, name)
	_ = d.refuse(at, "100%% of " + name + " is too much", name)
	_ = problem.Problem{Where: "here", What: fmt.Sprintf("port %d is taken", port)}
	_ = fmt.Sprintf("not a message of %s", name)
	_ = fmt.Errorf("context: %w", err)
	_ = fmt.Errorf("%w", err)
}
`

func TestEveryTextOfAConstructorIsAMessage(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	found, err := inSource(dir, []string{"fmt.Errorf", "refuse", "problem.Problem"})
	if err != nil {
		t.Fatal(err)
	}
	printed := []string{`gateway "edge": there is none; correct it`, "100% of it is too much", "port 80 is taken", "context: gone"}
	if len(found) != len(printed) {
		t.Fatalf("found %v, want %d messages", found, len(printed))
	}
	for i, m := range found {
		if at := slices.IndexFunc(printed, m.pattern.MatchString); at != i {
			t.Errorf("%q matches line %d, want %d", m.text, at, i)
		}
	}
}
