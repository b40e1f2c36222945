package accesslog

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/envoy"
)

// operator is one use of an operator of Envoy's in a format: %NAME(params):3%
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

// The parameters of an operator end at the first ")" that the rest of an
// operator comes after.
var operatorPattern = regexp.MustCompile(`%%|%([A-Z0-9_]+)(\((?s:(.*?))\))?(:[0-9]+)?%`)

// replaceOperators gives a text with every operator replaced.
func replaceOperators(text string, replacement func(operator) string) string {
	return operatorPattern.ReplaceAllStringFunc(text, func(found string) string {
		if found == "%%" {
			return found
		}
		return replacement(parsed(found))
	})
}

func parsed(text string) operator {
	m := operatorPattern.FindStringSubmatch(text)
	return operator{name: m[1], hasParams: m[2] != "", params: m[3], length: m[4]}
}

// check says which operators of a format this Envoy would refuse the listener
// for. Presets are tried for all releases by a test.
func (k Params) check(f entryFormat) error {
	if k.Settings.Redacts() && !k.Envoy.Expressions {
		return envoy.Requires("access_log", "to redact, expressions are needed", "1.32", "redact nothing")
	}
	if !f.custom() {
		return nil
	}
	var all []error
	f.each(func(text string) string {
		all = append(all, checkText(k.Envoy, text), k.canRedact(text))
		return text
	})
	return errors.Join(all...)
}

// checkText says what of a text with operators this Envoy does not know.
func checkText(can envoy.Capabilities, text string) error {
	var problem error
	rest := replaceOperators(text, func(o operator) string {
		if err := checkOperator(can, o); err != nil && problem == nil {
			problem = err
		}
		return ""
	})
	if problem != nil {
		return problem
	}
	if at := strings.Index(strings.ReplaceAll(rest, "%%", ""), "%"); at >= 0 {
		return fmt.Errorf("%q has a %% that begins no operator; write %%%% for one, and operators as %%NAME%% or %%NAME(parameter)%%", text)
	}
	return nil
}

func checkOperator(can envoy.Capabilities, o operator) error {
	known, ok := logOperators[o.name]
	switch {
	case !ok:
		return fmt.Errorf("%s: there is no operator %s%s", o, o.name, similar(o.name))
	case known.since > can.LogOperators:
		return fmt.Errorf("%s: the operator needs Envoy 1.%d or later; upgrade Envoy, or leave it out", o, known.since)
	case known.takes == needsParams && strings.TrimSpace(o.params) == "":
		return fmt.Errorf("%s: the operator needs a parameter; use %%%s(…)%%", o, o.name)
	case o.hasParams && known.takes == noParams:
		return fmt.Errorf("%s: the operator takes no parameter; use %%%s%%", o, o.name)
	case o.hasParams && known.paramsSince > can.LogOperators:
		return fmt.Errorf("%s: the operator takes a parameter from Envoy 1.%d on; upgrade Envoy, or leave it out", o, known.paramsSince)
	case o.length != "" && known.lengthSince == 0:
		return fmt.Errorf("%s: the operator takes no length; leave %q out", o, o.length)
	case o.length != "" && known.lengthSince > can.LogOperators:
		return fmt.Errorf("%s: the operator takes a length from Envoy 1.%d on; upgrade Envoy, or leave it out", o, known.lengthSince)
	case len(o.length) > 6:
		return fmt.Errorf("%s: the length is too large", o)
	case strings.ContainsAny(o.params, "\x00\r\n"):
		return fmt.Errorf("%s: the parameter has a line break; remove it", o)
	}
	return o.checkParams(known)
}

// checkParams says why Envoy does not take the operator's parameters.
func (o operator) checkParams(known knownOperator) error {
	switch {
	case !o.hasParams:
		return nil
	case o.name == "CEL":
		return checkExpression(o.params)
	case o.name == "COALESCE" && !json.Valid([]byte(o.params)):
		return fmt.Errorf("%s: the parameter is not JSON", o)
	case known.values != nil && !known.values.MatchString(o.params):
		return fmt.Errorf("%s: Envoy does not know the parameter; it takes %s", o, known.values)
	}
	return nil
}

// similar offers the operators that begin or end alike.
func similar(name string) string {
	var close []string
	for known := range logOperators {
		if strings.HasPrefix(known, name) || strings.HasSuffix(known, name) || strings.HasPrefix(name, known) && len(known) > 3 {
			close = append(close, "%"+known+"%")
		}
	}
	if len(close) == 0 {
		return ""
	}
	slices.Sort(close)
	return "; there is " + strings.Join(close[:min(3, len(close))], ", ")
}
