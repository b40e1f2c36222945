package admission

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/usherproxy/usher/internal/testing/messages"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// full is a change with everything.
var full = Change{
	Container: "ingress-gateway", Args: []string{"-addresses=usher.consul.svc", "-grpc-port=18002"},
	CASecret: "usher-xds-tls", TerminationGracePeriodSeconds: 70,
}

// pod is a gateway's pod.
const pod = `{"metadata": {"name": "gateway"}, "spec": {
	"terminationGracePeriodSeconds": 10, "volumes": [{"name": "tmp"}],
	"containers": [{"name": "agent"}, {"name": "ingress-gateway", "args": ["-grpc-port=8502"], "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}]
}}`

// review is a request about an object.
func review(object string) string {
	return `{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
		"uid": "1", "kind": {"version": "v1", "kind": "Pod"}, "operation": "CREATE", "namespace": "consul", "object": ` + object + `}}`
}

// post sends a body to the webhook.
func post(t testing.TB, change Change, path, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body))
	NewHandler(Options{Change: change, Logger: slog.New(slog.DiscardHandler)}).ServeHTTP(w, r)
	return w.Code, strings.TrimSpace(w.Body.String())
}

// respond returns the response to a request about an object.
func respond(t *testing.T, change Change, body string) *admissionv1.AdmissionResponse {
	t.Helper()
	code, text := post(t, change, Path, body)
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal([]byte(text), &answer); err != nil || code != http.StatusOK || answer.Response == nil {
		t.Fatalf("%d %s (%v)", code, text, err)
	}
	if answer.Kind != "AdmissionReview" || answer.APIVersion != "admission.k8s.io/v1" || answer.Response.UID != "1" || answer.Request != nil {
		t.Errorf("the answer is %s", text)
	}
	return answer.Response
}

// TestPatch checks the patch for each part of a change.
func TestPatch(t *testing.T) {
	const (
		args = `{"op":"add","path":"/spec/containers/1/args/-","value":"-addresses=usher.consul.svc"},` +
			`{"op":"add","path":"/spec/containers/1/args/-","value":"-grpc-port=18002"}`
		volume = `{"op":"add","path":"/spec/volumes/-","value":{"name":"usher-ca","secret":{"secretName":"usher-xds-tls","items":[{"key":"ca.crt","path":"ca.crt"}]}}},` +
			`{"op":"add","path":"/spec/containers/1/volumeMounts/-","value":{"name":"usher-ca","readOnly":true,"mountPath":"/etc/usher-ca"}}`
		grace = `{"op":"add","path":"/spec/terminationGracePeriodSeconds","value":70}`
	)
	with := func(old, replacement string) string {
		if !strings.Contains(pod, old) {
			t.Fatalf("the pod has no %s", old)
		}
		return strings.Replace(pod, old, replacement, 1)
	}
	changed := strings.NewReplacer(`["-grpc-port=8502"]`, `["-grpc-port=8502", "-addresses=usher.consul.svc", "-grpc-port=18002"]`,
		`"volumes": [`, `"volumes": [{"name": "usher-ca"}, `, `"terminationGracePeriodSeconds": 10`, `"terminationGracePeriodSeconds": 70`).Replace(pod)
	for name, c := range map[string]struct {
		change Change
		pod    string
		want   string
	}{
		"everything":                  {full, pod, args + "," + volume + "," + grace},
		"arguments only":              {Change{Container: full.Container, Args: full.Args}, pod, args},
		"a pod without volumes":       {Change{Container: full.Container, Args: full.Args}, with(`"volumes": [{"name": "tmp"}],`, ""), args},
		"it has more time":            {full, with(`Seconds": 10`, `Seconds": 71`), args + "," + volume},
		"another flag after ours":     {full, strings.Replace(changed, `18002"]`, `18002", "-grpc-port=8502"]`, 1), args},
		"a pod that has been changed": {full, changed, ""},
	} {
		got := respond(t, c.change, review(c.pod))
		want := ""
		if c.want != "" {
			want = "[" + c.want + "]"
		}
		if diff := cmp.Diff(want, string(got.Patch)); diff != "" || !got.Allowed {
			t.Errorf("%s: allowed %v (-want +got): %s", name, got.Allowed, diff)
		}
		if isPatch := got.PatchType != nil && *got.PatchType == admissionv1.PatchTypeJSONPatch; isPatch != (want != "") {
			t.Errorf("%s: the type of the patch is %v", name, got.PatchType)
		}
	}
}

// TestOthersAreAllowed checks that what a configuration may send by mistake stays as it is.
func TestOthersAreAllowed(t *testing.T) {
	for old, replacement := range map[string]string{`"CREATE"`: `"UPDATE"`, `"kind": "Pod"`: `"kind": "Deployment"`, `"uid"`: `"subResource": "status", "uid"`} {
		got := respond(t, full, strings.Replace(review(pod), old, replacement, 1))
		if !got.Allowed || got.Patch != nil {
			t.Errorf("with %s: %+v", replacement, got)
		}
	}
}

// TestLimits checks what is no review of this webhook.
func TestLimits(t *testing.T) {
	for _, c := range []struct {
		path, body string
		want       int
	}{
		{Path, review(`{"spec": {"hostname": "` + strings.Repeat("a", maxBody) + `"}}`), http.StatusRequestEntityTooLarge},
		{"/", review(pod), http.StatusNotFound},
		{Path, "", http.StatusBadRequest},
	} {
		if code, text := post(t, full, c.path, c.body); code != c.want {
			t.Errorf("%s with %d bytes: %d %s, want %d", c.path, len(c.body), code, text, c.want)
		}
	}
}

// TestMessages provokes every message of this package.
func TestMessages(t *testing.T) {
	var lines []string
	for _, object := range []string{strings.Replace(pod, `"ingress-gateway"`, `"gateway"`, 1), strings.Replace(pod, `"args"`, `"command"`, 1)} {
		got := respond(t, full, review(object))
		if got.Allowed || got.Result == nil {
			t.Fatalf("the pod is allowed: %+v", got)
		}
		lines = append(lines, got.Result.Message)
	}
	for _, body := range []string{
		"pod", "{}", strings.Replace(review(pod), "k8s.io/v1", "k8s.io/v1beta1", 1), review(`"pod"`), review(`"` + strings.Repeat("a", maxBody) + `"`),
	} {
		code, text := post(t, full, Path, body)
		if code == http.StatusOK {
			t.Fatalf("%.100s: %s", body, text)
		}
		lines = append(lines, text)
	}
	messages.Check(t, lines, "fmt.Errorf", "fmt.Sprintf")
}

// FuzzReview sends any body. The webhook never panics, and a patch is valid JSON.
func FuzzReview(f *testing.F) {
	f.Add([]byte(review(pod)))
	f.Add([]byte(review(`{"spec": {"containers": null}}`)))
	f.Add([]byte(`{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"object": null}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		h := &handler{Options: Options{Change: full, Logger: slog.New(slog.DiscardHandler)}}
		answer, err := h.answer(body)
		if err != nil {
			return
		}
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(answer, &review); err != nil {
			t.Fatalf("%q: the answer is %s: %v", body, answer, err)
		}
		if patch := review.Response.Patch; patch != nil && (!json.Valid(patch) || !bytes.HasPrefix(patch, []byte("["))) {
			t.Errorf("%q: the patch is %s", body, patch)
		}
	})
}
