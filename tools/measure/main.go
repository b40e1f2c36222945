// Command measure counts the Go code of a repository: files and lines by
// package, and how long and how branched its functions are.
//
//	go run ./tools/measure [DIR]
//
// Lines are all lines of a file. The length of a function is its lines from
// "func" to the closing brace. Branches are McCabe's cyclomatic complexity: one,
// and one for each if, for, case, && and ||. Tests, e2e, tools and test support
// are counted beside what is shipped.
package main

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	root := "."
	if len(os.Args) > 1 {
		root = os.Args[1]
	}
	packages, err := measure(root)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	report(packages)
}

// count is what was counted of some files.
type count struct {
	files, lines, comments int
	functions, branches    []int
}

func (c *count) add(o count) {
	c.files += o.files
	c.lines += o.lines
	c.comments += o.comments
	c.functions = append(c.functions, o.functions...)
	c.branches = append(c.branches, o.branches...)
}

// measure counts by package: the directory, or "tests" for all tests.
func measure(root string) (map[string]*count, error) {
	packages := map[string]*count{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		of, err := countFile(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		if strings.HasSuffix(name, "_test.go") {
			dir = "tests"
		}
		if packages[dir] == nil {
			packages[dir] = &count{}
		}
		packages[dir].add(of)
		return nil
	})
	return packages, err
}

func countFile(path string) (count, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return count{}, err
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return count{}, err
	}
	c := count{files: 1, lines: bytes.Count(text, []byte("\n"))}
	line := func(p token.Pos) int { return fset.Position(p).Line }
	for _, group := range file.Comments {
		c.comments += line(group.End()) - line(group.Pos()) + 1
	}
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok {
			c.functions = append(c.functions, line(f.End())-line(f.Pos())+1)
			c.branches = append(c.branches, branches(f))
		}
	}
	return c, nil
}

// branches returns the cyclomatic complexity of a function.
func branches(f *ast.FuncDecl) int {
	n := 1
	ast.Inspect(f, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.IfStmt, *ast.ForStmt, *ast.RangeStmt:
			n++
		case *ast.CaseClause:
			if node.List != nil {
				n++
			}
		case *ast.CommClause:
			if node.Comm != nil {
				n++
			}
		case *ast.BinaryExpr:
			if node.Op == token.LAND || node.Op == token.LOR {
				n++
			}
		}
		return true
	})
	return n
}

// besides are the directories that are not in the product. Those of the last two
// lines are where test support was before internal/testing, so that older commits
// can be compared.
var besides = []string{
	"tests", "e2e", "tools", "internal/testing",
	"internal/apiserver", "internal/golden", "internal/parts",
	"internal/xdstest", "internal/ordered/orderedcmp",
}

// shipped reports whether a package is in the product.
func shipped(dir string) bool {
	for _, other := range besides {
		if dir == other || strings.HasPrefix(dir, other+"/") {
			return false
		}
	}
	return dir != "."
}

func report(packages map[string]*count) {
	dirs := make([]string, 0, len(packages))
	for dir := range packages {
		dirs = append(dirs, dir)
	}
	slices.SortFunc(dirs, func(a, b string) int {
		if shipped(a) != shipped(b) {
			if shipped(a) {
				return -1
			}
			return 1
		}
		return cmp.Compare(a, b)
	})
	fmt.Println("| package | files | lines | function p50/p90/max | branches p90/max | comments |")
	fmt.Println("|---|---:|---:|---:|---:|---:|")
	var product, beside count
	for i, dir := range dirs {
		if i > 0 && !shipped(dir) && shipped(dirs[i-1]) {
			printRow("**shipped**", product)
		}
		printRow(dir, *packages[dir])
		if shipped(dir) {
			product.add(*packages[dir])
		} else {
			beside.add(*packages[dir])
		}
	}
	printRow("**beside**", beside)
}

func printRow(name string, c count) {
	slices.Sort(c.functions)
	slices.Sort(c.branches)
	fmt.Printf("| %s | %d | %d | %d/%d/%d | %d/%d | %.1f %% |\n", name, c.files, c.lines,
		quantile(c.functions, 50), quantile(c.functions, 90), quantile(c.functions, 100),
		quantile(c.branches, 90), quantile(c.branches, 100), 100*float64(c.comments)/float64(max(c.lines, 1)))
}

// quantile returns the value below or at which so many percent of sorted are.
func quantile(sorted []int, percent int) int {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)*percent+99)/100-1]
}
