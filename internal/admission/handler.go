package admission

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/usherproxy/usher/internal/guard"
)

const (
	// Path is the path of the webhook.
	Path = "/gateway-pods"

	maxBody    = 2 << 20 // of a review; etcd stores no pod of this size
	maxRunning = 8       // reviews that are decoded at the same time; others wait
)

// Options are the parts of a handler. All are required.
type Options struct {
	Change Change
	Logger *slog.Logger
}

// handler answers reviews.
type handler struct {
	Options
	places chan struct{}
}

// NewHandler returns the webhook, which answers at Path.
func NewHandler(o Options) http.Handler {
	h := &handler{Options: o, places: make(chan struct{}, maxRunning)}
	mux := http.NewServeMux()
	mux.Handle("POST "+Path, h)
	return mux
}

// ServeHTTP implements http.Handler. Whatever is not a review gets an error, which Kubernetes takes as a failed webhook.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLong := new(http.MaxBytesError); errors.As(err, &tooLong) {
		http.Error(w, fmt.Sprintf("the review is longer than %d bytes", tooLong.Limit), http.StatusRequestEntityTooLarge)
		return
	}
	if err != nil {
		return // the caller is gone
	}
	select {
	case h.places <- struct{}{}:
		defer func() { <-h.places }()
	case <-r.Context().Done():
		return
	}
	var answer []byte
	err = guard.Run(h.Logger, "admission", func() (err error) {
		answer, err = h.answer(body)
		return err
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer)
}

// answer returns the answer to an encoded AdmissionReview.
func (h *handler) answer(body []byte) ([]byte, error) {
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, fmt.Errorf("the body is no AdmissionReview: %w", err)
	}
	if review.GroupVersionKind() != admissionv1.SchemeGroupVersion.WithKind("AdmissionReview") || review.Request == nil {
		return nil, fmt.Errorf("the body is %q of %q, want a request in an AdmissionReview of %q; set admissionReviewVersions to [v1]",
			review.Kind, review.APIVersion, admissionv1.SchemeGroupVersion)
	}
	response, err := h.review(review.Request)
	if err != nil {
		return nil, err
	}
	response.UID = review.Request.UID
	review.Request, review.Response = nil, response
	return json.Marshal(review)
}

// review decides about one pod.
func (h *handler) review(r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	if r.Kind != (metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}) || r.Operation != admissionv1.Create || r.SubResource != "" {
		return &admissionv1.AdmissionResponse{Allowed: true}, nil // another configuration asks
	}
	var pod corev1.Pod
	if err := json.Unmarshal(r.Object.Raw, &pod); err != nil {
		return nil, fmt.Errorf("the object of the review is no Pod: %w", err)
	}
	// The log has it at the level debug only: Kubernetes reports refusals, and any caller could fill the log.
	name := pod.Name
	if name == "" { // the pods of a ReplicaSet get their names later
		name = pod.GenerateName
	}
	log := h.Logger.With("namespace", r.Namespace, "pod", name)
	ops, err := h.Change.patch(&pod)
	if err != nil {
		log.Debug("pod of a gateway refused", "error", err)
		refusal := &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: err.Error()}
		return &admissionv1.AdmissionResponse{Result: refusal}, nil
	}
	if len(ops) == 0 {
		return &admissionv1.AdmissionResponse{Allowed: true}, nil
	}
	patch, err := json.Marshal(ops)
	if err != nil {
		return nil, err
	}
	log.Debug("pod of a gateway changed", "dry_run", r.DryRun != nil && *r.DryRun)
	patchType := admissionv1.PatchTypeJSONPatch
	return &admissionv1.AdmissionResponse{Allowed: true, Patch: patch, PatchType: &patchType}, nil
}
