package loadbalancer

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/testing/messages"
)

// TestMessages provokes every message of the package.
func TestMessages(t *testing.T) {
	lines := append(messagesOfServices(), messagesOfEvents(t)...)
	messages.Check(t, append(lines, messagesOfConnect(t)...),
		"fmt.Errorf", "fmt.Sprintf", "errors.New", "problem.Problem", "addProblem", "unknown", "Info")
}

func messagesOfServices() []string {
	type annotations = map[string]string
	var services []*corev1.Service
	for _, c := range valueCases {
		services = append(services, balanced(annotations{c.key: c.value}))
	}
	for _, a := range []annotations{
		{hetzner: "true", openstack: "false"},
		{stackit: "true", stackit + "-ports-filter": "http"},
		{scalewayV2: "*", scalewayV1: "80"},
		{awsAll: "*", awsType: "nlb"},
		{awsAll: "*", awsPrefix + "healthcheck-protocol": "http", awsPrefix + "healthcheck-port": "21000"},
		{scalewayV2: "*", scwCheck + "type": "http"},
		{vultr: "true", prefix + "vultr-loadbalancer-healthcheck-path": "/"},
		{alibaba: "on", aliCheck + "type": "http"},
	} {
		services = append(services, balanced(a))
	}
	for _, change := range []func(*corev1.Service){
		func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort },
		func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("http") },
		func(s *corev1.Service) {
			s.Annotations[awsTargetType], s.Spec.ExternalTrafficPolicy = "instance", corev1.ServiceExternalTrafficPolicyLocal
		},
		func(s *corev1.Service) {
			s.Annotations = annotations{awsPorts: "80"}
			s.Spec.Ports[1].TargetPort = s.Spec.Ports[0].TargetPort
		},
	} {
		s := balanced(annotations{awsAll: "*"})
		change(s)
		services = append(services, s)
	}
	var lines []string
	for _, s := range services {
		for _, p := range readIntent(s).problems {
			lines = append(lines, p.String())
		}
	}
	return lines
}

func messagesOfEvents(t *testing.T) []string {
	var lines lineWriter
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "edge", errors.New(`User "usher" cannot list resource "services"`))
	address := net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 443}
	for _, e := range []serviceEvent{
		{},
		{err: forbidden},
		{err: &url.Error{Op: "Get", URL: "https://kube", Err: &net.OpError{Op: "dial", Addr: &address, Err: errors.New("connection refused")}}},
		{err: &url.Error{Op: "Get", URL: "https://kube", Err: errors.New("EOF")}},
		{err: errors.New("the server is currently unable to handle the request")},
		{err: &guard.Error{Part: "kubernetes", Value: "oops", At: "file.go:1"}},
	} {
		r := newTestReconciler(t)
		r.observeAt(1, e)
		lines.add(r)
	}
	for _, key := range []string{ociLB, ociNLB} { // the cloud does not follow their removal
		r := newTestReconciler(t)
		s := balanced(map[string]string{key: "1"})
		if key == ociNLB {
			s.Annotations[key] = "true"
		}
		r.observeAt(1, serviceIs(s))
		r.observeAt(2, serviceIs(balanced(nil)))
		lines.add(r)
	}
	r := newTestReconciler(t)
	r.keepAfterPanic(&guard.Error{Part: "kubernetes", Value: "oops", At: "file.go:1"})
	lines.add(r)
	r.Logger = slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	r.observeAt(60, serviceIs(onePort(service("true", 60))))
	lines = append(lines, r.Metrics.warning(r.now))
	configMap := record{at: types.NamespacedName{Namespace: "consul", Name: "usher-balancers"}}
	for _, err := range []error{apierrors.NewNotFound(schema.GroupResource{}, ""), forbidden} {
		lines = append(lines, configMap.problem(err).String())
	}
	return lines
}

// lineWriter collects messages.
type lineWriter []string

func (w *lineWriter) Write(line []byte) (int, error) {
	*w = append(*w, string(line[:len(line)-1]))
	return len(line), nil
}

func (w *lineWriter) add(r *testReconciler) {
	for _, p := range r.last.Problems {
		*w = append(*w, p.String())
	}
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

func onePort(s *corev1.Service) *corev1.Service {
	s.Spec.Ports = s.Spec.Ports[:1]
	return s
}

func messagesOfConnect(t *testing.T) []string {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	var lines []string
	for _, file := range []string{"", "testdata/no-such-file", kubeconfig(t, "://")} {
		_, err := Connect(file)
		lines = append(lines, fmt.Sprint(err))
	}
	return lines
}
