package gateway

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func usher(mode any) map[string]any {
	return map[string]any{"proxy_protocol": map[string]any{"mode": mode}}
}

func TestDecodeSettings(t *testing.T) {
	strict := Settings{ProxyProtocol: ProxyProtocol{Mode: Strict}}
	for _, tc := range []struct {
		name     string
		raw      any
		want     Settings
		problems []string
	}{
		{"absent", nil, Settings{}, nil},
		{"empty object", map[string]any{}, Settings{}, nil},
		{"mode", usher("strict"), strict, nil},
		{"lists of one as HCL makes them", []map[string]any{{"proxy_protocol": []map[string]any{{"mode": "strict"}}}}, strict, nil},
		{"lists of one as JSON gives them", []any{map[string]any{"proxy_protocol": []any{map[string]any{"mode": []any{"strict"}}}}}, strict, nil},
		{
			"wrong mode", usher("on"),
			Settings{},
			[]string{`x: usher.proxy_protocol.mode: "on" is not allowed; use one of "off", "permissive", "strict"`},
		},
		{
			"HCL's bare true", usher(true),
			Settings{},
			[]string{`x: usher.proxy_protocol.mode: true is not allowed; use one of "off", "permissive", "strict"`},
		},
		{
			"unknown keys",
			map[string]any{"proxy_protcol": "strict", "proxy_protocol": map[string]any{"mdoe": "strict"}},
			Settings{},
			[]string{
				`x: usher.proxy_protcol: this key is unknown; remove it or use one of "proxy_protocol"`,
				`x: usher.proxy_protocol.mdoe: this key is unknown; remove it or use one of "mode"`,
			},
		},
		{
			"not an object", "strict",
			Settings{},
			[]string{`x: usher: "strict" is not allowed; use an object with the keys "proxy_protocol"`},
		},
		{
			"two blocks",
			[]any{usher("strict"), usher("off")},
			Settings{},
			[]string{`x: usher: a list is not allowed; use an object with the keys "proxy_protocol"`},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, problems := DecodeSettings("x", tc.raw)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			var lines []string
			for _, p := range problems {
				lines = append(lines, p.String())
			}
			if diff := cmp.Diff(tc.problems, lines); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLayerKeepsItsLastGoodSettings(t *testing.T) {
	var l Layer
	l, problems := l.Next("x", usher("sideways"))
	if !l.Unknown || len(problems) != 1 {
		t.Fatalf("bad from the start: Unknown = %v with problems %v, want true and one", l.Unknown, problems)
	}
	l, _ = l.Next("x", usher("strict"))
	if l.Unknown || l.Settings.ProxyProtocol.Mode != Strict {
		t.Fatalf("mended: %+v, want strict", l)
	}
	l, problems = l.Next("x", usher("sideways"))
	if l.Unknown || l.Settings.ProxyProtocol.Mode != Strict || len(problems) != 1 {
		t.Fatalf("bad again: %+v with %v, want strict and one problem", l, problems)
	}
	l, _ = l.Next("x", nil)
	if l.Settings.ProxyProtocol.Mode != "" {
		t.Fatalf("removed: %+v, want no setting", l)
	}
	l, _ = l.Next("x", usher("sideways"))
	if l.Unknown {
		t.Fatal("bad after it was removed: Unknown, want the last good content, which says nothing")
	}
}

func TestResolve(t *testing.T) {
	says := func(m Mode) Layer { return Layer{Settings: Settings{ProxyProtocol: ProxyProtocol{Mode: m}}} }
	nothing, unknown := Layer{}, Layer{Unknown: true}
	for _, tc := range []struct {
		name   string
		layers []Layer
		want   Mode
		known  bool
	}{
		{"nobody says anything", []Layer{nothing, nothing, nothing}, Off, true},
		{"the default alone", []Layer{says(Strict), nothing, nothing}, Strict, true},
		{"the gateway wins over the default", []Layer{says(Strict), says(Off), nothing}, Off, true},
		{"the operator wins over both", []Layer{says(Strict), says(Off), says(Permissive)}, Permissive, true},
		{"an unknown default that a later layer decides", []Layer{unknown, says(Strict), nothing}, Strict, true},
		{"an unknown default that decides", []Layer{unknown, nothing, nothing}, "", false},
		{"an unknown operator", []Layer{says(Strict), says(Strict), unknown}, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, known := Resolve(tc.layers...)
			if got.ProxyProtocol.Mode != tc.want || known != tc.known {
				t.Errorf("got %q, %v; want %q, %v", got.ProxyProtocol.Mode, known, tc.want, tc.known)
			}
		})
	}
}
