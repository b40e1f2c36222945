package settings

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/problem"
)

// candidate is a place that settings of a listener may come from.
type candidate struct {
	*Listener
	layer int    // its index; noLayer for the defaults
	path  string // of its groups in the layer, with a dot at the end
}

// noLayer is the index of a setting that no layer sets.
const noLayer = -1

// candidates returns the places for a listener, the most specific first.
func candidates(port int, layers []Layer) []candidate {
	var all []candidate
	for i := range slices.Backward(layers) {
		if found, ok := layers[i].Settings.Listeners[port]; ok {
			own := found // only what is found goes to the heap
			all = append(all, candidate{&own, i, fmt.Sprintf("%s.%d.", listenersKey, port)})
		}
	}
	for i := range slices.Backward(layers) {
		all = append(all, candidate{&layers[i].Settings.Listener, i, ""})
	}
	return append(all, candidate{&defaults, noLayer, ""})
}

// firstOf returns the first candidate that sets the setting; the last one has all.
func (s Setting) firstOf(all []candidate) candidate {
	return all[slices.IndexFunc(all, func(c candidate) bool { return s.isSet(c.Listener) })]
}

// Origin is where the value of a setting comes from.
type Origin struct {
	Setting string           // such as "proxy_protocol.mode"
	Hidden  bool             // see Setting
	Value   string           // as it was written, in JSON
	Layer   int              // the index of the layer that sets it; negative: it has its default
	Path    string           // of the setting in that layer
	At      problem.Position // the zero value if the layer is not in a file
	Place   string           // where that is, as PlaceOfMode has it; empty: it has its default
}

// Explain returns where each setting of the listener on a port comes from, as Resolve takes it, in the order of Groups.
func Explain(port int, layers ...Layer) []Origin {
	var origins []Origin
	all := candidates(port, layers)
	for _, group := range Groups {
		for _, s := range group.Settings {
			from, name := s.firstOf(all), group.Key+"."+s.Key
			o := Origin{Setting: name, Hidden: s.Hidden, Value: s.Default, Layer: from.layer, Path: from.path + name}
			if from.layer != noLayer {
				layer := layers[from.layer]
				o.Value, o.At, o.Place = layer.written(o.Path), layer.Places[o.Path], layer.place(o.Path).String()
			}
			origins = append(origins, o)
		}
	}
	return origins
}

// written returns the value at a path as it was written.
func (l Layer) written(path string) string {
	value := l.raw
	for name := range strings.SplitSeq(path, ".") {
		object, _ := single(value).(map[string]any)
		value = object[name]
	}
	text, _ := json.Marshal(value) // it was decoded from text
	return string(text)
}
