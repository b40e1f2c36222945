package accesslog

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/usherproxy/usher/internal/envoy"
)

// The one operator with operators in it is COALESCE. It shows the first of them that has a value. Its parameter is JSON:
// {"operators": ["NAME", {"command": "NAME", "param": "parameter", "max_length": 3}]}.

// listedOperator is one of the operators in a list, if it is more than a name.
type listedOperator struct {
	Command   string      `json:"command"`
	Param     string      `json:"param,omitempty"`
	MaxLength json.Number `json:"max_length,omitempty"`
}

// operatorsIn returns the operators that are listed in a parameter. Envoy's keys are case-sensitive, and it ignores those
// that it does not know.
func operatorsIn(param string) ([]operator, error) {
	if !json.Valid([]byte(param)) {
		return nil, errors.New(`the parameter is not JSON; write %COALESCE({"operators": […]})%`)
	}
	var object map[string]json.RawMessage
	var list []json.RawMessage
	if json.Unmarshal([]byte(param), &object) != nil || json.Unmarshal(object["operators"], &list) != nil || len(list) == 0 {
		return nil, errors.New(`the parameter has no list of operators; write %COALESCE({"operators": ["NAME", {"command": "NAME", "param": "…"}]})%`)
	}
	found := make([]operator, len(list))
	for i, raw := range list {
		var ok bool
		if found[i], ok = listed(raw); !ok {
			return nil, fmt.Errorf(`operators[%d] is not an operator; write "NAME", or {"command": "NAME", "param": "…", "max_length": 3} without the keys that are not needed`, i)
		}
	}
	return found, nil
}

// listed reads one operator of a list.
func listed(raw json.RawMessage) (o operator, ok bool) {
	if isText(raw, &o.name) {
		return o, word.MatchString(o.name)
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil || !isText(object["command"], &o.name) || !word.MatchString(o.name) {
		return o, false
	}
	if param, has := object["param"]; has && !isText(param, &o.params) {
		return o, false
	}
	o.hasParams = o.params != ""
	if length, has := object["max_length"]; has {
		var n int
		if json.Unmarshal(length, &n) != nil || n <= 0 {
			return o, false
		}
		o.length = fmt.Sprintf(":%d", n)
	}
	return o, true
}

// isText reports whether a value is a text, and stores it.
func isText(raw json.RawMessage, into *string) bool {
	return len(raw) > 0 && raw[0] == '"' && json.Unmarshal(raw, into) == nil
}

// word matches what may be the name of an operator, in capitals or not.
var word = regexp.MustCompile(`^\w+$`)

// listOf returns the parameter with the operators. It has no ")", which could end it.
func listOf(from []operator) string {
	list := make([]any, len(from))
	for i, o := range from {
		list[i] = o.name
		if o.hasParams || o.length != "" {
			list[i] = listedOperator{o.name, o.params, json.Number(strings.TrimPrefix(o.length, ":"))}
		}
	}
	text, err := json.Marshal(map[string]any{"operators": list})
	if err != nil {
		panic(err) // texts and numbers: no error
	}
	return strings.ReplaceAll(string(text), ")", `\u0029`)
}

// checkList returns why an Envoy of a minor release would reject the list in the parameter.
func (o operator) checkList(release uint32) error {
	list, err := operatorsIn(o.params)
	if err != nil {
		return fmt.Errorf("%s: %w", o, err)
	}
	for i, inner := range list {
		if err := inner.checkBuiltIn(release); err != nil {
			return fmt.Errorf("%s: operators[%d]: %w", o, i, err)
		}
	}
	return nil
}

// listWithoutClaims returns the operator with a list of operators that show no claim, and false if one of them has no
// such counterpart.
func (o operator) listWithoutClaims(can envoy.Capabilities) (operator, bool) {
	list, err := operatorsIn(o.params)
	if err != nil {
		return o, false
	}
	changed := false
	for i, inner := range list {
		safe, ok := inner.withoutClaim(can)
		if !ok {
			return o, false
		}
		list[i], changed = safe, changed || safe != inner
	}
	if changed {
		o.params = listOf(list)
	}
	return o, true
}
