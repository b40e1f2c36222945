package listeners

import (
	"testing"

	"github.com/usherproxy/usher/gateway"
	"github.com/usherproxy/usher/internal/golden"
)

// FuzzCompile gives Compile any snapshot that can be written down. It must not
// panic, and Envoy's validators must take whatever it builds.
func FuzzCompile(f *testing.F) {
	for _, name := range golden.Cases(f, testdata) {
		in, err := toJSON(golden.Input(f, testdata, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s, _, err := decodeFixture(in)
		if err != nil {
			t.Skip()
		}
		for _, instance := range s.Instances {
			if instance == nil {
				t.Skip()
			}
			for _, e := range []gateway.Envoy{{}, {Major: 1, Minor: 22}} {
				checkResources(t, Compile(s, instance, e))
			}
		}
	})
}
