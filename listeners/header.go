package listeners

import (
	"maps"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
)

// headerChange is what happens to the headers of requests or responses.
type headerChange struct {
	add    []*corev3.HeaderValueOption
	remove []string
}

// headerChanges translates header modifiers: what is added comes before what is
// set, each in the order of the names.
func headerChanges(can envoy.Capabilities, m *gateway.HeaderModifiers) headerChange {
	if m == nil {
		return headerChange{}
	}
	change := headerChange{remove: m.Remove}
	for _, name := range slices.Sorted(maps.Keys(m.Add)) {
		change.add = append(change.add, headerOption(can, name, m.Add[name], false))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Set)) {
		change.add = append(change.add, headerOption(can, name, m.Set[name], true))
	}
	return change
}

func headerOption(can envoy.Capabilities, name, value string, overwrite bool) *corev3.HeaderValueOption {
	out := &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}}
	switch {
	case !overwrite:
	case can.AppendAction:
		out.AppendAction = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	default:
		//nolint:staticcheck // Envoy before 1.24 knows no other way to overwrite.
		out.Append = wrapperspb.Bool(false)
	}
	return out
}
