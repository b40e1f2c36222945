package configtree

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/testing/messages"
)

type embedded struct{ MaxConnections *uint32 }

type example struct {
	Name     string
	Port     int
	Enabled  bool
	Interval gateway.Duration
	Hosts    []string
	Headers  map[string]string
	Limits   struct{ embedded }
	Opaque   *yaml.Node `json:"-"`

	Mode  Refused   `why:"there is none"`
	Peer  Refused   `why:"there is none; use name"`
	Block Forbidden `why:"there is none"`
	Meta  Ignored
}

// decode decodes a text strictly or as Consul does. It returns the problems as lines.
func decode(t *testing.T, strict bool, text string) (example, []string) {
	t.Helper()
	docs, bad := ParseYAML("f.yaml", []byte(text))
	if bad != nil {
		t.Fatal(bad)
	}
	d := Decoder{File: "f.yaml", Strict: strict}
	var e example
	d.Object(docs[0], "", &e)
	var lines []string
	for _, p := range d.Problems {
		lines = append(lines, p.String())
	}
	return e, lines
}

// badFields are objects with problems.
var badFields = []struct {
	name, text string
	strict     bool
	want       []string
}{
	{"unknown", "name: a\nlimits:\n  max_conections: 1\nx: 1", false, []string{
		`f.yaml:3: limits.max_conections: this key is unknown (did you mean "max_connections"?); remove it, or use max_connections`,
		"f.yaml:4: x: this key is unknown; remove it, or use enabled, headers, hosts, interval, limits, name, opaque, port",
	}},
	{"another spelling", "Limits: {}\nlimits: {max_connections: 1}", true, []string{
		`f.yaml:1: Limits: this key is unknown (did you mean "limits"?); remove it, or use enabled, headers, hosts, interval, limits, name, opaque, port`,
		`f.yaml:2: limits.max_connections: this key is unknown (did you mean "maxConnections"?); remove it, or use maxConnections`,
	}},
	{"two spellings", "Name: a\nname: b", false, []string{"f.yaml:2: name: this key is already given at f.yaml:1; remove one of the two"}},
	{"types", "name: {}\nport: a\nenabled: 5\ninterval: 5x\nhosts: [[]]\nheaders: [a, b]\nlimits: {maxConnections: -1}", false, []string{
		"f.yaml:1: name: an object is not allowed; use a string in quotes",
		`f.yaml:2: port: "a" is not allowed; use a whole number`,
		"f.yaml:3: enabled: 5 is not allowed; use true or false",
		`f.yaml:4: interval: "5x" is not allowed; use a duration such as "10s"`,
		"f.yaml:5: hosts[0]: a list is not allowed; use a string in quotes",
		"f.yaml:6: headers: a list is not allowed; use an object",
		"f.yaml:7: limits.maxConnections: -1 is not allowed; use a whole number from 0 to 4294967295",
	}},
	{"strict types", "name: 5\nport: '5'\nenabled: 'true'\ninterval: 5\nhosts: a\nlimits: [{}]", true, []string{
		"f.yaml:1: name: 5 is not allowed; use a string in quotes",
		`f.yaml:2: port: "5" is not allowed; use a whole number`,
		`f.yaml:3: enabled: "true" is not allowed; use true or false`,
		`f.yaml:4: interval: 5 is not allowed; use a duration such as "10s"`,
		`f.yaml:5: hosts: "a" is not allowed; use a list`,
		"f.yaml:6: limits: a list is not allowed; use an object",
	}},
	{"refused", "mode: a\npeer: [1]\nblock: {}\nmeta: 1", false, []string{
		"f.yaml:1: mode: there is none; remove it", "f.yaml:2: peer: there is none; use name", "f.yaml:3: block: there is none; remove it",
	}},
}

func TestABadFieldIsAProblemWithItsLineAndPath(t *testing.T) {
	for _, tc := range badFields {
		t.Run(tc.name, func(t *testing.T) {
			_, got := decode(t, tc.strict, tc.text)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestConsulsSpellingsAndWeakTypesAreDecoded(t *testing.T) {
	five := uint32(5)
	want := example{Name: "1", Port: 5, Enabled: true, Interval: 5, Hosts: []string{"a"}, Headers: map[string]string{"X-One": "1"}, Limits: struct{ embedded }{embedded{&five}}}
	for _, text := range []string{
		"{Name: 1, PORT: '5', enabled: 't', Interval: 5, Hosts: a, Headers: [{X-One: 1}], LIMITS: [{MaxConnections: 5.0}], Mode: '', peer: [0, {a: false}], block: null, meta: [1]}",
		"{name: ['1'], port: [5], enabled: true, interval: 5ns, hosts: [a], headers: {X-One: '1'}, limits: {max_connections: 5e0}, opaque: ~}",
	} {
		got, problems := decode(t, false, text)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(struct{ embedded }{})); diff != "" || len(problems) > 0 {
			t.Errorf("%s\nproblems %v (-want +got)\n%s", text, problems, diff)
		}
	}
}

func TestMessages(t *testing.T) {
	var lines []string
	for _, tc := range badTexts() {
		lines = append(lines, tc.want)
	}
	for _, tc := range badFields {
		lines = append(lines, tc.want...)
	}
	messages.Check(t, lines, "errorAt", "Add", "problem.Problem")
}
