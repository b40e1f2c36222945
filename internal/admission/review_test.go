package admission

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// without removes a part of the pod.
func without(t *testing.T, part string) string {
	t.Helper()
	if !strings.Contains(pod, part) {
		t.Fatalf("the pod has no %s", part)
	}
	return strings.Replace(pod, part, "", 1)
}

// A pod that cannot get all of the change would be a gateway without Usher.
func TestAPodThatLacksAPartIsRefused(t *testing.T) {
	for _, part := range []string{
		`"volumes": [{"name": "tmp"}],`, `, "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]`, `"args": ["-grpc-port=8502"], `,
	} {
		got := respond(t, full, review(without(t, part)))
		if got.Allowed || got.Patch != nil || got.Result == nil || got.Result.Code != http.StatusForbidden || got.Result.Reason != metav1.StatusReasonForbidden {
			t.Errorf("a pod without %s: %+v", part, got)
		}
	}
}

// Kubernetes fills the time in. A pod without it keeps the default, which is not known here.
func TestAPodWithoutATimeToEndKeepsIt(t *testing.T) {
	got := respond(t, full, review(without(t, `"terminationGracePeriodSeconds": 10,`)))
	if !got.Allowed || got.Patch == nil || strings.Contains(string(got.Patch), "terminationGracePeriodSeconds") {
		t.Errorf("got %+v with the patch %s", got, got.Patch)
	}
}

func TestAReviewWithoutARequestIsRefused(t *testing.T) {
	code, text := post(t, full, Path, `{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}`)
	if code != http.StatusBadRequest || !strings.Contains(text, "want a request in an AdmissionReview") {
		t.Errorf("%d %s", code, text)
	}
}

func TestOnlyAPostIsAReview(t *testing.T) {
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPut, Path, strings.NewReader(review(pod)))
	NewHandler(Options{Change: full, Logger: slog.New(slog.DiscardHandler)}).ServeHTTP(w, r)
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// send sends the review of the pod.
func send(ctx context.Context, h http.Handler) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, Path, strings.NewReader(review(pod))))
	return w
}

func TestReviewsWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &handler{Options: Options{Change: full, Logger: slog.New(slog.DiscardHandler)}, places: make(chan struct{}, maxRunning)}
		for range maxRunning {
			h.places <- struct{}{}
		}
		answered := make(chan *httptest.ResponseRecorder, 1)
		go func() { answered <- send(t.Context(), h) }()
		ctx, leave := context.WithCancel(t.Context())
		left := make(chan *httptest.ResponseRecorder, 1)
		go func() { left <- send(ctx, h) }()
		synctest.Wait()
		if len(answered) > 0 || len(left) > 0 {
			t.Error("more reviews run than may")
		}
		leave()
		if w := <-left; w.Body.Len() > 0 {
			t.Errorf("a caller that has left is answered %s", w.Body)
		}
		<-h.places
		if w := <-answered; w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("the review that has waited is answered %d %v %s", w.Code, w.Header(), w.Body)
		}
		if n := len(h.places); n != maxRunning-1 {
			t.Errorf("%d places are taken, want %d", n, maxRunning-1)
		}
	})
}

// panickingLog is a log that panics once something asks for a log of one pod.
type panickingLog struct{ slog.Handler }

func (panickingLog) WithAttrs([]slog.Attr) slog.Handler { panic("a bug") }

func TestAPanicRefusesThePod(t *testing.T) {
	var log bytes.Buffer
	h := NewHandler(Options{Change: full, Logger: slog.New(panickingLog{slog.NewTextHandler(&log, nil)})})
	for range 2 * maxRunning { // none of them keeps its place
		w := send(t.Context(), h)
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "bug in Usher: panic in admission") {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	if !strings.Contains(log.String(), "stack=") {
		t.Errorf("the log has no stack: %s", &log)
	}
}

// Kubernetes reports refusals, and any caller could fill the log.
func TestRefusalsAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	h := NewHandler(Options{Change: Change{Container: "another"}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if w := send(t.Context(), h); !strings.Contains(w.Body.String(), "no container") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if log.Len() > 0 {
		t.Errorf("the log has %s", &log)
	}
}
