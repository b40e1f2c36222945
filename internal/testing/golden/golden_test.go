package golden

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"
)

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestADifferentAnswerIsAnError(t *testing.T) {
	file := write(t, t.TempDir(), "lab.out.yaml", "a: 1\n")
	if err := check(file, []byte("a: 1\n"), false); err != nil {
		t.Errorf("the same answer: %v", err)
	}
	if err := check(file, []byte("a: 2\n"), false); err == nil {
		t.Error("a different answer passes")
	}
	if err := check(file+"x", []byte("a: 1\n"), false); err == nil || !strings.Contains(err.Error(), "-update") {
		t.Errorf("a missing answer gives %v; want an error that names -update", err)
	}
}

func TestUpdateWritesTheAnswer(t *testing.T) {
	file := write(t, t.TempDir(), "lab.out.yaml", "a: 1\n")
	if err := check(file, []byte("a: 2\n"), true); err != nil {
		t.Fatal(err)
	}
	if err := check(file, []byte("a: 2\n"), false); err != nil {
		t.Error(err)
	}
}

func TestAnAnswerWithoutAQuestionIsAnErrorAndUpdateDeletesIt(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "lab.in.yaml", "")
	kept := write(t, dir, "lab.out.yaml", "")
	orphan := write(t, dir, "gone.out.yaml", "")
	if err := checkOrphans(dir, false); err == nil || !strings.Contains(err.Error(), orphan) {
		t.Errorf("checkOrphans gives %v; want an error that names %s", err, orphan)
	}
	if err := checkOrphans(dir, true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(orphan); !os.IsNotExist(err) {
		t.Error("the orphan is still there")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}

func TestMessagesBecomeSortedYAML(t *testing.T) {
	message, err := structpb.NewStruct(map[string]any{"b": "x", "a": []any{1.0}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := YAML(map[string]any{"list": []any{message}, "aside": "y"})
	if err != nil {
		t.Fatal(err)
	}
	want := "aside: \"y\"\nlist:\n  - a:\n      - 1\n    b: x\n"
	if string(got) != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}
