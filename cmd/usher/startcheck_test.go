package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/testing/apiserver"
)

// linesOf returns the lines of the table that checks write.
func linesOf(t *testing.T, checks ...startCheck) string {
	t.Helper()
	var lines strings.Builder
	c := startChecks{slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})), checks}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.run(ctx) }()
	time.Sleep(2 * startCheckTime)
	cancel()
	<-done
	return lines.String()
}

// TestStartChecksAreATable has checks that find something, that have no answer, and that hang.
func TestStartChecksAreATable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		got := linesOf(t,
			startCheck{name: "good", try: func(context.Context) (string, error) { return "ok", nil }},
			startCheck{name: "bad", try: func(context.Context) (string, error) { return "it lacks agent:read", nil }},
			startCheck{name: "late", try: func(context.Context) (string, error) {
				if tries++; tries < 3 {
					return "", errors.New("connection refused")
				}
				return "ok, at last", nil
			}},
			startCheck{name: "away", try: func(context.Context) (string, error) { return "", errors.New("connection refused") }},
			startCheck{name: "hangs", try: func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() }},
		)
		want := `level=INFO msg="start check" check=good result=ok
level=WARN msg="start check" check=bad result="it lacks agent:read"
level=INFO msg="start check" check=late result="ok, at last"
level=WARN msg="start check" check=away result="connection refused"
level=WARN msg="start check" check=hangs result="no answer within 4s"
`
		if got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}

// TestRightsInKubernetesAreTried has an API server that allows everything but one verb.
func TestRightsInKubernetesAreTried(t *testing.T) {
	var denied string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review authorizationv1.SelfSubjectAccessReview
		body, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(body, &review); err != nil || r.URL.Path != "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		a := review.Spec.ResourceAttributes
		what := strings.Trim(strings.Join([]string{a.Verb, a.Resource, a.Namespace + "/" + a.Name}, " "), " /")
		review.Status.Allowed = what != denied
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(review)
	}))
	defer server.Close()
	client, err := kubeapi.Connect(apiserver.KubeconfigFor(t, server.URL))
	if err != nil {
		t.Fatal(err)
	}
	o := serveOptions{balancerRecord: "consul/usher-balancers", reportKeySecret: "consul/usher-key", tokenReview: true}
	for what, want := range map[string]string{
		"":               "",
		"watch services": "ok if a Role allows it in the gateways' namespaces (docs/kubernetes-role.yaml): usher may not watch all Services; problems will name what is missing",
		"update configmaps consul/usher-balancers": "usher may not update the ConfigMap; give its account the rights in docs/kubernetes-record.yaml",
		"get secrets consul/usher-key":             "usher may not get the Secret; give its account the rights in docs/kubernetes-report-key.yaml",
		"create tokenreviews":                      "usher may not create tokenreviews; bind its account to the ClusterRole system:auth-delegator",
	} {
		denied = what
		var found []string
		for _, check := range o.kubernetesChecks(client) {
			result, err := check.try(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if result != "ok" {
				found = append(found, result)
			}
		}
		if got := strings.Join(found, "; "); got != want {
			t.Errorf("without %q: got %q, want %q", what, got, want)
		}
	}
}
