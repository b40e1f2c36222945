package settings

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/problem"
)

// TestExplainAgreesWithResolve has a setting in each layer, for all listeners and for one.
func TestExplainAgreesWithResolve(t *testing.T) {
	layer := func(raw map[string]any) Layer {
		l, problems := Layer{}.Update("entry", raw)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		return l
	}
	mode := func(m string) map[string]any {
		return map[string]any{"proxy_protocol": []any{map[string]any{"mode": m}}}
	}
	general, special := layer(mode("off")), layer(mode("permissive"))
	own := layer(map[string]any{"listeners": map[string]any{"80": mode("strict")}})
	at := problem.Position{File: "f", Line: 3, Column: 7}
	own.Places = map[string]problem.Position{"listeners.80.proxy_protocol.mode": at}
	for _, tc := range []struct {
		port   int
		layers []Layer
		want   Origin
	}{
		{80, nil, Origin{Value: `"auto"`, Layer: noLayer, Path: "proxy_protocol.mode"}},
		{80, []Layer{general, special}, Origin{Value: `"permissive"`, Layer: 1, Path: "proxy_protocol.mode", Place: "entry: usher.proxy_protocol.mode"}},
		{80, []Layer{own, special, general}, Origin{Value: `"strict"`, Layer: 0, Path: "listeners.80.proxy_protocol.mode", At: at, Place: "f:3"}},
		{81, []Layer{own, special}, Origin{Value: `"permissive"`, Layer: 1, Path: "proxy_protocol.mode", Place: "entry: usher.proxy_protocol.mode"}},
	} {
		tc.want.Setting = "proxy_protocol.mode"
		origins := Explain(tc.port, tc.layers...)
		if diff := cmp.Diff(tc.want, origins[0]); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		if l, _ := Resolve(tc.port, tc.layers...); `"`+string(l.ProxyProtocol.Mode)+`"` != origins[0].Value {
			t.Errorf("Resolve says %q, Explain %s", l.ProxyProtocol.Mode, origins[0].Value)
		}
		var count int
		for _, g := range Groups {
			count += len(g.Settings)
		}
		if len(origins) != count {
			t.Errorf("%d settings are explained, want %d", len(origins), count)
		}
	}
}

// TestPlaceOf has the places of problems of settings: the layer that Resolve takes them from.
func TestPlaceOf(t *testing.T) {
	layer := func(where string, raw map[string]any) Layer {
		l, problems := Layer{}.Update(where, raw)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		return l
	}
	logs := map[string]any{"access_log": map[string]any{"sinks": []any{
		map[string]any{"type": "stdout"}, map[string]any{"type": "stderr"},
	}, "format": "ecs"}}
	defaults := layer(`proxy-defaults "global"`, logs)
	file := layer("usher.hcl:3", map[string]any{"listeners": map[string]any{"80": logs}})
	file.Places = map[string]problem.Position{
		"listeners.80.access_log.sinks":    {File: "usher.hcl", Line: 5},
		"listeners.80.access_log.sinks[1]": {File: "usher.hcl", Line: 7, Column: 3},
		"listeners.80.access_log.format":   {File: "usher.hcl", Line: 9},
		"listeners.80":                     {File: "usher.hcl", Line: 4},
	}
	for _, tc := range []struct {
		setting string
		port    int
		want    string
	}{
		{"access_log.sinks[1]", 80, "usher.hcl:7: usher.listeners.80.access_log.sinks[1]: wrong"},
		{"access_log.sinks[2]", 80, "usher.hcl:5: usher.listeners.80.access_log.sinks[2]: wrong"},
		{"access_log.format", 80, "usher.hcl:9: usher.listeners.80.access_log.format: wrong"},
		{"access_log.format", 81, `proxy-defaults "global": usher.access_log.format: wrong`},
	} {
		if got := PlaceOf(tc.setting, tc.port, defaults, file).Problem("wrong").String(); got != tc.want {
			t.Errorf("%s of listener %d: got %q, want %q", tc.setting, tc.port, got, tc.want)
		}
	}
	if got := file.PlaceOfListener(80).Problem("wrong"); got.String() != "usher.hcl:4: usher.listeners.80: wrong" || got.At.Line != 4 {
		t.Errorf("got %q at %v", got, got.At)
	}
	if p := PlaceOf("proxy_protocol.mode", 80, defaults, file); !p.IsZero() {
		t.Errorf("a setting that has its default is set at %s", p)
	}
}
