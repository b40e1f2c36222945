package probe

import "testing"

// TestEnvoyRefusedHeader tells Envoy's own 400 for a header from other answers.
func TestEnvoyRefusedHeader(t *testing.T) {
	refusal := Answer{Sent: v1, Reaction: HTTP, Status: 400, Server: "envoy"}
	for name, tc := range map[string]struct {
		change func(*Answer)
		want   bool
	}{
		"v1":               {func(*Answer) {}, true},
		"v2":               {func(a *Answer) { a.Sent = v2 }, true},
		"without a header": {func(a *Answer) { a.Sent = plain }, false},
		"another server":   {func(a *Answer) { a.Server = "nginx" }, false},
		"by the service":   {func(a *Answer) { a.Service = true }, false},
		"another status":   {func(a *Answer) { a.Status = 200 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := refusal
			tc.change(&a)
			if got := (Result{Answers: []Answer{a}}).EnvoyRefusedHeader(); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
