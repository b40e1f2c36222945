package usher_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// leaksSeenBy lists the packages that start goroutines and have no leak check, each with the package whose tests run them
// and have one.
var leaksSeenBy = map[string]string{
	"internal/testing/browser":     "internal/statuspage",
	"internal/testing/fakeenvoy":   "xds",
	"internal/testing/testprocess": "internal/bootstrap",
	"e2e/lab":                      "e2e",
}

// withoutLeakCheck lists the packages whose goroutines end with their process: a command, and what the containers of a test
// run.
var withoutLeakCheck = []string{"e2e/bench", "e2e/kubernetes/cluster"}

// TestPackagesThatStartGoroutinesCheckForLeaks finds the packages of all modules of this repository that start
// goroutines, and wants each of them to have a TestMain with goleak.
func TestPackagesThatStartGoroutinesCheckForLeaks(t *testing.T) {
	starts, checks := goroutinesAndChecks(t)
	for _, dir := range starts {
		where := dir
		if seenBy := leaksSeenBy[dir]; seenBy != "" {
			where = seenBy
		}
		if !slices.Contains(checks, where) && !slices.Contains(withoutLeakCheck, dir) {
			t.Errorf("%s starts goroutines, and %s has no leak check: add func TestMain(m *testing.M) { goleak.VerifyTestMain(m) } to its tests", dir, where)
		}
	}
	for dir := range leaksSeenBy {
		if !slices.Contains(starts, dir) {
			t.Errorf("leaksSeenBy has %s, which starts no goroutine", dir)
		}
		if slices.Contains(checks, dir) {
			t.Errorf("leaksSeenBy has %s, which has a leak check", dir)
		}
	}
	for _, dir := range withoutLeakCheck {
		if !slices.Contains(starts, dir) {
			t.Errorf("withoutLeakCheck has %s, which starts no goroutine", dir)
		}
	}
}

// goroutinesAndChecks returns the directories whose code starts goroutines, tests included, and those whose tests have a
// leak check.
func goroutinesAndChecks(t *testing.T) (starts, checks []string) {
	t.Helper()
	files := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != ".") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(files, path, content, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if startsGoroutine(n) {
				starts = append(starts, filepath.Dir(path))
			}
			if isLeakCheck(n) {
				checks = append(checks, filepath.Dir(path))
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(starts)
	return slices.Compact(starts), checks
}

// startsGoroutine reports whether n is a go statement, or a call like sync.WaitGroup.Go, errgroup.Group.Go or
// context.AfterFunc.
func startsGoroutine(n ast.Node) bool {
	if _, ok := n.(*ast.GoStmt); ok {
		return true
	}
	return slices.Contains([]string{"Go", "TryGo", "AfterFunc"}, calledMethod(n))
}

// isLeakCheck reports whether n calls goleak.VerifyTestMain, which ends the process with an error for a leak.
func isLeakCheck(n ast.Node) bool { return calledMethod(n) == "VerifyTestMain" }

// calledMethod returns the name after the dot of the function that n calls; empty if n is something else.
func calledMethod(n ast.Node) string {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return ""
	}
	if called, ok := call.Fun.(*ast.SelectorExpr); ok {
		return called.Sel.Name
	}
	return ""
}
