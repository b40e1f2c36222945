package usher_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/pages"
)

// exception is a code block that no test can run or compare, by its page and its beginning.
type exception struct{ page, beginning, reason string }

// Reasons of several.
const (
	needsCluster  = "it is for a cluster with the reader's own names; make kubernetes runs the quickstart on the real chart"
	needsCloud    = "it needs an account of a cloud"
	needsKubelet  = "it asks a kubelet, and the cluster of make kubernetes has none"
	needsRegistry = "it pushes to a registry of the reader's; TestPushedImageIsTheBuiltOneAndLeadsToItsSBOMs in tools/image pushes"
	isAFragment   = "it is a part of a file of another program"
	isAnExample   = "it is from one run, and another one prints something else"
)

// notTested lists the code blocks that no test can run or compare, each with the reason.
var notTested = []exception{
	{"docs/chaos.md", "   61.2s to", isAnExample},
	{"docs/commands.md", "$ usher status", "its state needs a Service that is being changed and a port in use; TestTableOfOneUsher compares such a table"},
	{"docs/commands.md", "grpcurl", "grpcurl is no part of the lab; TestClientStatusIsForCallersOnLoopback asks the same"},
	{"docs/consul.md", "usher serve --consul-http-addr", "its addresses are the reader's; TestTheNextConsulAgentIsUsed has such a list"},
	{"docs/dataplane.md", "consul-dataplane", "the program is built for make kubernetes only; TestRealConsulDataplaneThroughUsher runs it"},
	{"docs/install.md", "dnf install", "the lab is Debian"},
	{"docs/install.md", "helm install", needsCluster},
	{"docs/install.md", "make push", needsRegistry},
	{"docs/install.md", "git clone", "the lab has no way to the internet"},
	{"docs/kubernetes.md", "kubectl --namespace consul get pods", needsKubelet},
	{"docs/kubernetes.md", "apiVersion", isAFragment},
	{"docs/kubernetes.md", "kubectl --namespace consul debug", needsKubelet},
	{"docs/kubernetes.md", "make image", "kind is no part of the lab; tools/image builds and imports the image"},
	{"docs/monitoring.md", "scrape_configs", isAFragment},
	{"docs/monitoring.md", "cp charts", "promtool is no part of the lab; TestAlertsFire runs the rules with the library of Prometheus"},
	{"docs/monitoring.md", "apiVersion: 1", isAFragment},
	{"docs/performance.md", "make bench", "it takes an hour on a quiet machine"},
	{"docs/performance.md", "2 cores", isAnExample},
	{"docs/quickstart-kubernetes.md", "make push", needsRegistry},
	{"docs/quickstart-kubernetes.md", "docker load", "the lab has no container engine; TestDockerArchiveHasANameForEachArchitecture in tools/image has the names"},
	{"docs/quickstart-kubernetes.md", "kubectl --namespace consul logs", needsKubelet},
	{"docs/quickstart-vm.md", "aws elbv2 describe", needsCloud},
	{"docs/quickstart-vm.md", "aws elbv2 modify", needsCloud},
	{"docs/settings.md", "kubectl get proxydefaults", needsCluster},
	{"docs/settings.md", "apiVersion", isAFragment},
	{"docs/state.md", "[Service]", isAFragment},
	{"docs/state.md", "kubectl --namespace consul create secret", needsCluster},
	{"docs/status-page.md", "ssh", "it logs in at a machine of the reader's"},
	{"docs/support.md", "kubectl exec", needsKubelet},
	{"docs/troubleshooting.md", "curl --silent --head https", "no service of the lab redirects; TestHeaders sees the header that is the reason"},
	{"docs/troubleshooting.md", "kubectl --namespace consul get pods", needsCluster},
	{"docs/troubleshooting.md", "journalctl -u usher | grep", "it needs an Envoy that is refused; TestWhoIsRefused has what the log says"},
}

// languages are those that a code block may have.
var languages = []string{"console", "sh", "hcl", "yaml", "json", "text", "ini"}

// TestEveryBlockOfThePagesIsTested wants each code block of the pages in one place: a test runs it or compares it (see
// internal/testing/pages), or it is in the list of those for which that is not possible.
func TestEveryBlockOfThePagesIsTested(t *testing.T) {
	calls, blocks := readCalls(t), allBlocks(t)
	named := slices.DeleteFunc(slices.Clone(blocks), func(b pages.Block) bool {
		return !slices.ContainsFunc(calls, func(c call) bool { return c.names(b) })
	})
	used, code := map[int]bool{}, readCode(t)
	for _, block := range blocks {
		if !slices.Contains(languages, block.Lang) {
			t.Errorf("%s: the block's language is %q, want one of %v", block, block.Lang, languages)
		}
		exception := slices.IndexFunc(notTested, func(e exception) bool {
			return e.page == block.Page && strings.HasPrefix(block.Text, e.beginning)
		})
		isTested := testedByLanguage(block) || slices.Contains(named, block) || typedElsewhere(block, named)
		switch {
		case exception >= 0 && isTested:
			t.Errorf("%s: the block is tested, and it is in the list of those that cannot be", block)
		case exception < 0 && !isTested:
			t.Errorf("%s: no test names the block", block)
		}
		used[exception] = true
	}
	for i, e := range notTested {
		if !used[i] {
			t.Errorf("%s has no block that begins with %q, and the list of those that cannot be tested has one", e.page, e.beginning)
		}
		for _, name := range testFunc.FindAllString(e.reason, -1) {
			if !code.declares("", name) {
				t.Errorf("%s: %q: there is no test %s", e.page, e.beginning, name)
			}
		}
	}
}

// testedByLanguage reports whether a test reads all blocks of this language and kind.
func testedByLanguage(b pages.Block) bool {
	switch {
	case b.Page == "docs/messages.md": // make generate writes it from the lists of TestMessages
		return true
	case b.Lang == "hcl": // TestSettingsInDocumentsAreRead
		return strings.HasPrefix(b.Text, "usher") || strings.HasPrefix(b.Text, "gateway")
	case b.Lang == "yaml": // TestSettingsAreShownInBothForms, TestChartSettingsAreRead
		return strings.HasPrefix(b.Text, "spec:\n  config:\n    usher:\n") || strings.Contains("\n"+b.Text, "\nsettings:\n")
	}
	return false
}

// typedElsewhere reports whether a test types each command of a block in another block.
func typedElsewhere(b pages.Block, tested []pages.Block) bool {
	commands := b.Commands()
	for _, command := range commands {
		if !slices.ContainsFunc(tested, func(other pages.Block) bool { return slices.Contains(other.Commands(), command) }) {
			return false
		}
	}
	return b.Lang == "sh" && len(commands) > 0
}

func allBlocks(t *testing.T) []pages.Block {
	t.Helper()
	names, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []pages.Block
	for _, name := range append(names, "README.md", "SECURITY.md") {
		blocks = append(blocks, pages.Page(t, name)...)
	}
	return blocks
}

// call is a call of pages.Page, pages.Section or pages.Find in a test.
type call struct{ function, page, text string }

// names reports whether a block is among those that the call returns.
func (c call) names(b pages.Block) bool {
	if c.page != b.Page {
		return false
	}
	switch c.function {
	case "Page":
		return true
	case "Section":
		return c.text == b.Section
	default:
		return strings.HasPrefix(b.Text, c.text)
	}
}

// readCalls returns the calls in all tests of this repository, whatever their build tags are.
func readCalls(t *testing.T) []call {
	t.Helper()
	var calls []call
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == ".tools" {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if found, ok := n.(*ast.CallExpr); ok {
				calls = appendCall(calls, found)
			}
			return !isPartOfCall(n)
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return calls
}

// isPartOfCall reports whether an expression takes some of the blocks that pages.Page or pages.Section returns: no block is
// named by it.
func isPartOfCall(n ast.Node) bool {
	var of ast.Expr
	switch n := n.(type) {
	case *ast.IndexExpr:
		of = n.X
	case *ast.SliceExpr:
		of = n.X
	}
	found, ok := of.(*ast.CallExpr)
	if !ok {
		return false
	}
	function, ok := found.Fun.(*ast.SelectorExpr)
	return ok && isName(function.X, "pages") && function.Sel.Name != "Find"
}

// appendCall adds a call if it is one of those that name blocks, in literals.
func appendCall(calls []call, found *ast.CallExpr) []call {
	function, ok := found.Fun.(*ast.SelectorExpr)
	if !ok || !isName(function.X, "pages") || len(found.Args) < 2 {
		return calls
	}
	texts := []string{"", ""}
	for i, argument := range found.Args[1:] {
		literal, ok := argument.(*ast.BasicLit)
		if !ok || i >= len(texts) {
			return calls
		}
		text, err := strconv.Unquote(literal.Value)
		if err != nil {
			return calls
		}
		texts[i] = text
	}
	return append(calls, call{function.Sel.Name, texts[0], texts[1]})
}

func isName(e ast.Expr, name string) bool {
	ident, ok := e.(*ast.Ident)
	return ok && ident.Name == name
}
