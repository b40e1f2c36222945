package tokenreview

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/testing/messages"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// apiServer answers TokenReviews.
type apiServer struct {
	mu     sync.Mutex
	status authenticationv1.TokenReviewStatus
	code   int    // of the answer; 0: 201
	body   string // of an answer with a code
	silent bool
	tokens []string // that were reviewed
	// reported is what the Reviewer has reported.
	reported []string
}

// RoundTrip implements http.RoundTripper.
func (s *apiServer) RoundTrip(r *http.Request) (*http.Response, error) {
	var review authenticationv1.TokenReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.tokens = append(s.tokens, r.Method+" "+r.URL.Path+" "+review.Spec.Token)
	code, body, silent := s.code, s.body, s.silent
	review.Status = s.status
	s.mu.Unlock()
	if silent {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	if code == 0 {
		text, err := json.Marshal(review)
		if err != nil {
			return nil, err
		}
		code, body = http.StatusCreated, string(text)
	}
	header := http.Header{"Content-Type": {"application/json"}}
	return &http.Response{StatusCode: code, Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (s *apiServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// accepted is the status of a token of the pod consul/edge-1.
func accepted() authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{
		Username: "system:serviceaccount:consul:edge",
		Extra:    map[string]authenticationv1.ExtraValue{podName: {"edge-1"}, podUID: {"uid-1"}},
	}}
}

func newReviewer(t *testing.T, s *apiServer) (*Reviewer, *strings.Builder) {
	t.Helper()
	client, err := rest.RESTClientForConfigAndClient(&rest.Config{
		Host: "https://kubernetes", APIPath: "/api", QPS: -1,
		ContentConfig: rest.ContentConfig{
			GroupVersion: &schema.GroupVersion{Version: "v1"}, NegotiatedSerializer: serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion(),
		},
	}, &http.Client{Transport: s})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	return New(Options{
		Client: client, Logger: slog.New(slog.NewTextHandler(&log, nil)), StaleIfError: time.Hour,
		Report: func(found []problem.Problem) { s.set(func() { s.reported = append(s.reported, fmt.Sprint(found)) }) },
	}), &log
}

func TestThePodOfAToken(t *testing.T) {
	s := &apiServer{status: accepted()}
	r, _ := newReviewer(t, s)
	pod, err := r.Review(t.Context(), "sesame")
	if want := (Pod{Namespace: "consul", Name: "edge-1", UID: "uid-1"}); err != nil || pod != want {
		t.Errorf("%v %v, want %v", pod, err, want)
	}
	if len(s.tokens) != 1 || s.tokens[0] != "POST /apis/authentication.k8s.io/v1/tokenreviews sesame" {
		t.Errorf("requests %q", s.tokens)
	}
}

// refusals are answers that refuse a token, and what the error says of each.
var refusals = map[string]func(*authenticationv1.TokenReviewStatus){
	"it is not valid": func(s *authenticationv1.TokenReviewStatus) { s.Authenticated = false },
	"[invalid bearer token, service account token has been invalidated]": func(s *authenticationv1.TokenReviewStatus) {
		s.Authenticated, s.Error = false, "[invalid bearer token, service account token has been invalidated]"
	},
	"it is of no pod":  func(s *authenticationv1.TokenReviewStatus) { s.User.Extra = nil },
	"it is of no pod;": func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "alice" },
	"is of no pod":     func(s *authenticationv1.TokenReviewStatus) { s.User.Extra[podName] = []string{"edge-1", "edge-2"} },
	"of no pod":        func(s *authenticationv1.TokenReviewStatus) { delete(s.User.Extra, podUID) },
}

func TestTokensThatKubernetesRefuses(t *testing.T) {
	for want, change := range refusals {
		s := &apiServer{status: accepted()}
		r, log := newReviewer(t, s)
		if _, err := r.Review(t.Context(), "sesame"); err != nil {
			t.Fatal(err)
		}
		change(&s.status)
		_, err := r.Review(t.Context(), "sesame")
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		s.silent = true // what was accepted before does not count any more
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Review(ctx, "sesame"); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want the end of the caller", err)
		}
		if r.accepted.Len() != 0 || log.Len() != 0 {
			t.Errorf("%d tokens are remembered; the log: %s", r.accepted.Len(), log)
		}
	}
}

func TestWhileKubernetesDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &apiServer{status: accepted()}
		r, log := newReviewer(t, s)
		if _, err := r.Review(t.Context(), "known"); err != nil {
			t.Fatal(err)
		}
		s.set(func() { s.silent = true })
		for range 3 {
			begin := time.Now()
			if pod, err := r.Review(t.Context(), "known"); err != nil || pod.Name != "edge-1" || time.Since(begin) > nextTimeout {
				t.Errorf("a token that was accepted: %v %v after %v", pod, err, time.Since(begin))
			}
			begin = time.Now()
			if _, err := r.Review(t.Context(), "unknown"); err == nil || errors.Is(err, ErrRefused) || time.Since(begin) > firstTimeout {
				t.Errorf("another token: %v after %v, want no answer", err, time.Since(begin))
			}
		}
		s.set(func() { s.silent = false })
		if _, err := r.Review(t.Context(), "unknown"); err != nil {
			t.Error(err)
		}
		for text, times := range map[string]int{"kubernetes does not answer TokenReviews": 1, "kubernetes answers TokenReviews again": 1, "known\n": 0} {
			if n := strings.Count(log.String(), text); n != times {
				t.Errorf("the log has %q %d times, want %d:\n%s", text, n, times, log)
			}
		}
		const outage = "[Kubernetes TokenReviews (--token-review): the API server does not answer in time; check its health and load, and the network to it. " +
			"Meanwhile, Envoys whose tokens were accepted before may connect for 1h0m0s, and others are refused]"
		if want := []string{outage, "[]"}; !slices.Equal(s.reported, want) {
			t.Errorf("reported is %q, want %q", s.reported, want)
		}
		time.Sleep(time.Hour)
		s.set(func() { s.silent = true })
		if _, err := r.Review(t.Context(), "known"); err == nil {
			t.Error("a token that was accepted an hour ago is still accepted")
		}
	})
}

// TestMessages provokes every error of this package.
func TestMessages(t *testing.T) {
	var lines []string
	for _, change := range refusals {
		s := accepted()
		change(&s)
		_, err := podOf(s)
		lines = append(lines, err.Error())
	}
	for _, s := range []*apiServer{
		{code: http.StatusForbidden, body: `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "tokenreviews.authentication.k8s.io is forbidden: User \"system:serviceaccount:consul:usher\" cannot create resource \"tokenreviews\""}`},
		{code: http.StatusCreated, body: "<html>"},
	} {
		r, _ := newReviewer(t, s)
		_, err := r.Review(t.Context(), "sesame")
		lines = append(lines, err.Error())
	}
	synctest.Test(t, func(t *testing.T) {
		r, _ := newReviewer(t, &apiServer{silent: true})
		_, err := r.Review(t.Context(), "sesame")
		lines = append(lines, err.Error(), r.problem(err).String())
	})
	messages.Check(t, lines, "errors.New", "fmt.Errorf", "problem.Problem")
}
