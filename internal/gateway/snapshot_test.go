package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestSecretNeverPrints(t *testing.T) {
	leaf := Leaf{KeyPEM: "-----BEGIN"}
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "leaf", leaf, "key", leaf.KeyPEM)
	fmt.Fprintf(&out, "%v %+v %#v %s %q", leaf, leaf, leaf, leaf.KeyPEM, leaf.KeyPEM)
	if err := json.NewEncoder(&out).Encode(leaf); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "BEGIN") {
		t.Errorf("the key was printed: %s", out.String())
	}
}

func TestDurationTakesBothOfConsulsForms(t *testing.T) {
	for in, want := range map[string]time.Duration{`"1m30s"`: 90 * time.Second, `5000000000`: 5 * time.Second, `""`: 0} {
		var d Duration
		if err := json.Unmarshal([]byte(in), &d); err != nil || time.Duration(d) != want {
			t.Errorf("%s: got %v, %v; want %v", in, time.Duration(d), err, want)
		}
	}
	for _, in := range []string{`"soon"`, `true`, `{}`} {
		var d Duration
		if err := json.Unmarshal([]byte(in), &d); err == nil {
			t.Errorf("%s: got %v, want an error", in, time.Duration(d))
		}
	}
}

func TestEnvoyAtLeast(t *testing.T) {
	for _, tc := range []struct {
		e    EnvoyVersion
		want bool
	}{
		{EnvoyVersion{1, 31, 0}, true},
		{EnvoyVersion{1, 40, 2}, true},
		{EnvoyVersion{2, 0, 0}, true},
		{EnvoyVersion{1, 30, 9}, false},
		{EnvoyVersion{}, true},
	} {
		if got := tc.e.AtLeast(1, 31); got != tc.want {
			t.Errorf("%s at least 1.31: %v, want %v", tc.e, got, tc.want)
		}
	}
}

func TestParseID(t *testing.T) {
	for _, id := range []ID{{Name: "edge"}, {Name: "edge", Namespace: "team"}, {Name: "edge", Partition: "east"}, {"edge", "team", "east"}} {
		if got, ok := ParseID(id.String()); !ok || got != id {
			t.Errorf("ParseID(%q) is %#v, %v", id, got, ok)
		}
	}
	if got, ok := ParseID("default/default/edge"); !ok || got != (ID{Name: "edge"}) {
		t.Errorf("the default namespace and partition: %#v, %v", got, ok)
	}
	for _, text := range []string{"", "/", "team/edge", "edge/", "/team/edge", "default//edge", "a/b/c/d"} {
		if got, ok := ParseID(text); ok {
			t.Errorf("ParseID(%q) is %#v, want none", text, got)
		}
	}
}
