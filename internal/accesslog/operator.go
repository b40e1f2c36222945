package accesslog

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// operator is one use of one of Envoy's operators in a format: %NAME(params):3%
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/advanced/substitution_formatter).
type operator struct {
	name      string
	hasParams bool
	params    string
	length    string // ":3", or ""
}

func (o operator) String() string {
	params := ""
	if o.hasParams {
		params = "(" + o.params + ")"
	}
	return "%" + o.name + params + o.length + "%"
}

// operatorPattern reads as Envoy does: the parameters end at the first ")" after which the rest of an operator
// follows.
var operatorPattern = regexp.MustCompile(`%%|%([A-Z0-9_]+)(\((?s:(.*?))\))?(:[0-9]+)?%`)

// replaceOperators returns the text with every operator replaced.
func replaceOperators(text string, replacement func(operator) string) string {
	return operatorPattern.ReplaceAllStringFunc(text, func(found string) string {
		if found == "%%" {
			return found
		}
		return replacement(parseOperator(found))
	})
}

// parseOperator reads one operator. Of any other text it returns one without a name.
func parseOperator(text string) operator {
	m := operatorPattern.FindStringSubmatch(text)
	if m == nil || m[0] != text {
		return operator{}
	}
	return operator{name: m[1], hasParams: m[2] != "", params: m[3], length: m[4]}
}

// check returns why Envoy would reject a listener with this format, or why it cannot be redacted. Presets and named fields
// are not checked here: a test tries them for every release.
func (p Params) check(f logFormat) error {
	if p.Settings.Redacts() && !p.Envoy.Expressions {
		return tooOldError{refuse(p.redactSetting(), "redacting uses CEL, which needs Envoy 1.32 or later; upgrade Envoy, or remove the redact settings")}
	}
	if f.from != "" && f.from != settings.FormatText && f.from != settings.FormatJSON {
		return nil
	}
	var all []error
	f.each(func(text string) string {
		all = append(all, checkText(p.Envoy, text), p.checkRedaction(text))
		return text
	})
	return errors.Join(all...)
}

// checkText returns why this Envoy would reject a text with operators.
func checkText(can envoy.Capabilities, text string) error {
	return checkOperators(text, func(o operator) error { return o.check(can.LogOperators) })
}

// CheckHeader returns why this Envoy would reject a header with operators. Before 1.36, headers had others than formats, and
// are not checked. Neither are expressions, since Envoy takes some that are not used in formats, and operators that a new
// Envoy may have: a header that is refused costs more than a log.
func CheckHeader(value string, can envoy.Capabilities) error {
	if can.LogOperators < 36 || !strings.Contains(value, "%") {
		return nil
	}
	return checkOperators(value, func(o operator) error {
		hasParam := strings.TrimSpace(o.params) != ""
		switch _, known := operators[o.name]; {
		case hasParam && (o.name == "CEL" || o.name == "PER_REQUEST_STATE"): // the latter is FILTER_STATE in headers
			return nil
		case !known && can.MoreOperators:
			return nil
		}
		return o.checkBuiltIn(can.LogOperators)
	})
}

// checkOperators returns the first error of the operators in a text, or why it cannot be read.
func checkOperators(text string, check func(operator) error) error {
	var refused error
	rest := replaceOperators(text, func(o operator) string {
		refused = cmp.Or(refused, check(o))
		return ""
	})
	if refused != nil {
		return refused
	}
	if strings.Contains(strings.ReplaceAll(rest, "%%", ""), "%") {
		return fmt.Errorf("%q has a %% that begins no operator; write %%%% for one, and operators as %%NAME%% or %%NAME(parameter)%%", text)
	}
	return nil
}

// checkBuiltIn is check for places in which Envoy knows no operator that a format gets from an extension.
func (o operator) checkBuiltIn(release uint32) error {
	if o.name == "REQ_WITHOUT_QUERY" {
		return fmt.Errorf("%s: the operator works only in log formats, and not inside another one; use %%PATH(NQ)%% or %%REQ(…)%%", o)
	}
	return o.check(release)
}

// check returns why an Envoy of a minor release would reject the operator.
func (o operator) check(release uint32) error {
	row, known := operators[o.name]
	takes := row.takes
	if takes == nil {
		takes = &parameter{optional: true}
	}
	switch {
	case !known:
		return fmt.Errorf("%s: there is no operator %s%s", o, o.name, similar(o.name))
	case row.since > release:
		return tooOldError{fmt.Errorf("%s: the operator needs Envoy 1.%d or later; upgrade Envoy, or leave it out", o, row.since)}
	case !takes.optional && strings.TrimSpace(o.params) == "":
		return fmt.Errorf("%s: the operator needs a parameter; use %%%s(…)%%", o, o.name)
	case o.hasParams && row.takes == nil:
		return fmt.Errorf("%s: the operator takes no parameter; use %%%s%%", o, o.name)
	case o.hasParams && takes.since > release:
		return tooOldError{fmt.Errorf("%s: the operator takes a parameter from Envoy 1.%d on; upgrade Envoy, or leave it out", o, takes.since)}
	case o.length != "" && row.length == 0:
		return fmt.Errorf("%s: the operator takes no length; leave %q out", o, o.length)
	case o.length != "" && row.length > release:
		return tooOldError{fmt.Errorf("%s: the operator takes a length from Envoy 1.%d on; upgrade Envoy, or leave it out", o, row.length)}
	case len(o.length) > 6:
		return fmt.Errorf("%s: the length is too large; use one up to 99999", o)
	case strings.ContainsAny(o.params, "\x00\r\n"):
		return fmt.Errorf("%s: the parameter has a line break; remove it", o)
	case !o.hasParams:
		return nil
	case o.name == "CEL":
		return checkExpression(o.params)
	case o.name == "COALESCE":
		return o.checkList(release)
	case (takes == headerParam || takes == optionalHeaderParam) && !takes.forms.MatchString(o.params):
		return fmt.Errorf("%s: the parameter is not the name of a header, nor two names with a question mark between them; correct it", o)
	case takes.forms != nil && !takes.forms.MatchString(o.params):
		return fmt.Errorf("%s: Envoy does not know the parameter; it takes %s", o, strings.Trim(takes.forms.String(), "^$"))
	}
	return nil
}

// operatorList is where Envoy documents its operators.
const operatorList = "https://www.envoyproxy.io/docs/envoy/latest/configuration/advanced/substitution_formatter"

// similar offers the operators that begin or end alike, or the one that is spelt alike, or that of the field in an access
// log whose name is spelt alike.
func similar(name string) string {
	var near []string
	all := slices.Sorted(maps.Keys(operators))
	for _, known := range all {
		if strings.HasPrefix(known, name) || strings.HasSuffix(known, name) || strings.HasPrefix(name, known) && len(known) > 3 {
			near = append(near, "%"+known+"%")
		}
	}
	if nearest, ok := problem.Nearest(name, all); ok && len(near) == 0 {
		near = append(near, "%"+nearest+"%")
	}
	if field, ok := problem.Nearest(name, settings.LogFieldNames); ok && len(near) == 0 {
		near = append(near, Params{}.fields([]string{field})[field].(string))
	}
	meant := ""
	if len(near) > 0 {
		meant = " (did you mean " + strings.Join(near[:min(3, len(near))], " or ") + "?)"
	}
	return meant + "; see " + operatorList + ", or remove it"
}
