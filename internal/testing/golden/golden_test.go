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

// answer is a case's directory with one part.
func answer(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "lab.out")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "listeners.yaml", "a: 1\n")
	return dir
}

func TestADifferentAnswerIsAnError(t *testing.T) {
	dir := answer(t)
	if err := check(dir, map[string][]byte{"listeners.yaml": []byte("a: 1\n")}, false); err != nil {
		t.Errorf("the same answer: %v", err)
	}
	if err := check(dir, map[string][]byte{"listeners.yaml": []byte("a: 2\n")}, false); err == nil {
		t.Error("a different answer passes")
	}
	for name, parts := range map[string]map[string][]byte{
		"a part that is left over": {},
		"a missing part":           {"listeners.yaml": []byte("a: 1\n"), "routes.yaml": []byte("b: 1\n")},
	} {
		if err := check(dir, parts, false); err == nil || !strings.Contains(err.Error(), "-update") {
			t.Errorf("%s gives %v; want an error that names -update", name, err)
		}
	}
	if err := check(dir+"x", map[string][]byte{"listeners.yaml": []byte("a: 1\n")}, false); err == nil || !strings.Contains(err.Error(), "-update") {
		t.Errorf("a missing answer gives %v; want an error that names -update", err)
	}
}

func TestUpdateWritesTheAnswer(t *testing.T) {
	dir := answer(t)
	for _, dir := range []string{dir, dir + "x"} {
		parts := map[string][]byte{"routes.yaml": []byte("a: 2\n")}
		if err := check(dir, parts, true); err != nil {
			t.Fatal(err)
		}
		if err := check(dir, parts, false); err != nil {
			t.Error(err)
		}
	}
}

func TestAnAnswerWithoutAQuestionIsAnErrorAndUpdateDeletesIt(t *testing.T) {
	orphan := answer(t)
	dir := filepath.Dir(orphan)
	write(t, dir, "kept.in.yaml", "")
	kept := filepath.Join(dir, "kept.out")
	if err := check(kept, map[string][]byte{"a.yaml": nil}, true); err != nil {
		t.Fatal(err)
	}
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
