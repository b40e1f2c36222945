package csds

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/usherproxy/usher/xds"
)

// matcherOf returns whether one of the matchers matches a node; all nodes match no matchers. A matcher matches with all its
// conditions. Of a node's metadata, Usher knows the strings that it reads.
func matcherOf(matchers []*matcherv3.NodeMatcher) (func(xds.Node) bool, error) {
	var all []func(xds.Node) bool
	for _, m := range matchers {
		matches, err := nodeMatcher(m)
		if err != nil {
			return nil, err
		}
		all = append(all, matches)
	}
	return func(n xds.Node) bool {
		return len(all) == 0 || slices.ContainsFunc(all, func(matches func(xds.Node) bool) bool { return matches(n) })
	}, nil
}

func nodeMatcher(m *matcherv3.NodeMatcher) (func(xds.Node) bool, error) {
	conditions := []func(xds.Node) bool{}
	if id := m.GetNodeId(); id != nil {
		matches, err := textMatcher(id)
		if err != nil {
			return nil, err
		}
		conditions = append(conditions, func(n xds.Node) bool { return matches(n.ID) })
	}
	for _, of := range m.GetNodeMetadatas() {
		matches, err := metadataMatcher(of)
		if err != nil {
			return nil, err
		}
		conditions = append(conditions, matches)
	}
	return func(n xds.Node) bool {
		return !slices.ContainsFunc(conditions, func(matches func(xds.Node) bool) bool { return !matches(n) })
	}, nil
}

func metadataMatcher(m *matcherv3.StructMatcher) (func(xds.Node) bool, error) {
	path := m.GetPath()
	if len(path) != 1 {
		return nil, errors.New("node_metadatas: the path must have one key, such as node_name")
	}
	key := path[0].GetKey()
	if present, ok := m.GetValue().GetMatchPattern().(*matcherv3.ValueMatcher_PresentMatch); ok {
		return func(n xds.Node) bool { return (n.Metadata[key] != "") == present.PresentMatch }, nil
	}
	text := m.GetValue().GetStringMatch()
	if text == nil {
		return nil, errors.New("node_metadatas: the value must be a string_match or a present_match")
	}
	matches, err := textMatcher(text)
	if err != nil {
		return nil, err
	}
	return func(n xds.Node) bool { return n.Metadata[key] != "" && matches(n.Metadata[key]) }, nil
}

// textMatcher returns whether a matcher matches a text.
func textMatcher(m *matcherv3.StringMatcher) (func(string) bool, error) {
	fold := func(text string) string { return text }
	if m.GetIgnoreCase() {
		fold = strings.ToLower
	}
	in := func(matches func(text, part string) bool, part string) (func(string) bool, error) {
		part = fold(part)
		return func(text string) bool { return matches(fold(text), part) }, nil
	}
	switch pattern := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return in(func(text, part string) bool { return text == part }, pattern.Exact)
	case *matcherv3.StringMatcher_Prefix:
		return in(strings.HasPrefix, pattern.Prefix)
	case *matcherv3.StringMatcher_Suffix:
		return in(strings.HasSuffix, pattern.Suffix)
	case *matcherv3.StringMatcher_Contains:
		return in(strings.Contains, pattern.Contains)
	case *matcherv3.StringMatcher_SafeRegex: // it ignores ignore_case, and matches the whole text
		expression, err := regexp.Compile("^(?:" + pattern.SafeRegex.GetRegex() + ")$")
		if err != nil {
			return nil, err
		}
		return expression.MatchString, nil
	}
	return nil, errors.New("a string matcher must have exact, prefix, suffix, contains or safe_regex")
}
