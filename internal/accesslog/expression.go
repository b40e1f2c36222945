package accesslog

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"

	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/ast"
	celops "cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/parser"

	"github.com/usherproxy/usher/internal/problem"
)

// attributes are the roots of Envoy's attributes
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/advanced/attributes).
var attributes = []string{
	"request", "response", "connection", "upstream", "source", "destination", "metadata",
	"filter_state", "upstream_filter_state", "xds",
}

// functions are those that Envoy's expressions have, with the numbers of their arguments; the text of text.f(x) is one. Envoy
// has no loops, and no functions for texts besides these unless its bootstrap says so.
var functions = map[string][]int{
	"matches": {2}, "contains": {2}, "startsWith": {2}, "endsWith": {2}, "size": {1},
	"int": {1}, "bytes": {1}, "timestamp": {1}, "duration": {1}, "type": {1},
	"re.extract": {3}, "re.capture": {2}, "re.captureN": {2},
	celops.Conditional: {3}, celops.LogicalAnd: {2}, celops.LogicalOr: {2}, celops.LogicalNot: {1},
	celops.Equals: {2}, celops.NotEquals: {2}, celops.Less: {2}, celops.LessEquals: {2}, celops.Greater: {2}, celops.GreaterEquals: {2},
	celops.Add: {2}, celops.Subtract: {2}, celops.Multiply: {2}, celops.Divide: {2}, celops.Modulo: {2}, celops.Negate: {1},
	celops.Index: {2}, celops.In: {2},
}

// expressionParser has the one macro that needs no loop.
var expressionParser = func() *parser.Parser {
	p, err := parser.NewParser(parser.Macros(parser.HasMacro), parser.MaxRecursionDepth(64))
	if err != nil {
		panic(err) // the options are constants
	}
	return p
}()

// checkExpression returns why Envoy would reject a listener with an expression of CEL.
func checkExpression(text string) error {
	tree, problems := expressionParser.Parse(common.NewTextSource(text))
	if errs := problems.GetErrors(); len(errs) > 0 {
		first := errs[0]
		if strings.Contains(first.Message, "input '<EOF>'") {
			return fmt.Errorf("the expression %q ends too early (character %d); complete it", text, first.Location.Column()+1)
		}
		return fmt.Errorf("the expression %q cannot be understood at character %d: %s", text, first.Location.Column()+1, first.Message)
	}
	var refused error
	report := func(format string, args ...any) {
		if refused == nil {
			refused = fmt.Errorf("the expression %q: "+format, append([]any{text}, args...)...)
		}
	}
	namespaces := map[int64]bool{} // of functions, such as re
	ast.PreOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.CallKind:
			call := e.AsCall()
			name, arguments := call.FunctionName(), len(call.Args())
			if call.IsMemberFunction() {
				arguments++
				if on := call.Target(); on.Kind() == ast.IdentKind && on.AsIdent() == "re" {
					namespaces[on.ID()] = true
					name, arguments = "re."+name, arguments-1
				}
			}
			if takes, known := functions[name]; !known || !slices.Contains(takes, arguments) {
				report("Envoy has no function %s with %d arguments; there are matches, contains, startsWith, endsWith, size and re.extract", name, arguments)
			}
			if pattern, ok := patternOf(name, call); ok {
				if err := checkPattern(pattern); err != nil {
					report("%w", err)
				}
			}
		case ast.IdentKind:
			name := e.AsIdent()
			types := []string{"int", "uint", "double", "string", "bytes", "bool"}
			if !namespaces[e.ID()] && !slices.Contains(attributes, name) && !slices.Contains(types, name) {
				report("there is no attribute %q%s; attributes begin with %s; use one such as request.path",
					name, problem.DidYouMean(name, attributes), strings.Join(attributes, ", "))
			}
		case ast.ComprehensionKind, ast.StructKind:
			report("Envoy cannot create objects or run macros; compare attributes such as request.path")
		}
	}))
	return refused
}

// patternOf returns the regular expression that a function is called with.
func patternOf(name string, call ast.CallExpr) (string, bool) {
	at := 1
	if name == "matches" && call.IsMemberFunction() {
		at = 0
	}
	if name != "matches" && !strings.HasPrefix(name, "re.") || len(call.Args()) <= at ||
		call.Args()[at].Kind() != ast.LiteralKind {
		return "", false
	}
	pattern, ok := call.Args()[at].AsLiteral().Value().(string)
	return pattern, ok
}

// checkPattern returns why Envoy would reject a regular expression: its library accepts programs of 100 steps, which
// are counted here with a margin. RE2's syntax (https://github.com/google/re2) is Go's.
func checkPattern(pattern string) error {
	tree, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return fmt.Errorf("the regular expression %q cannot be understood: %w", pattern, err)
	}
	program, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return fmt.Errorf("the regular expression %q cannot be understood: %w", pattern, err)
	}
	const most, ofUnicode = 90, 8
	steps := 0
	for _, step := range program.Inst {
		switch ranges := len(step.Rune) / 2; {
		case step.Op == syntax.InstRuneAny || step.Op == syntax.InstRuneAnyNotNL:
			steps += ofUnicode
		case ranges > 0 && step.Rune[len(step.Rune)-1] > unicode.MaxASCII:
			steps += ranges + ofUnicode
		default:
			steps += max(1, ranges)
		}
	}
	if steps > most {
		return fmt.Errorf("the regular expression %q is too large for Envoy; use a shorter one, or startsWith, endsWith and contains", pattern)
	}
	return nil
}
