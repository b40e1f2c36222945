package loadbalancer

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/testing/messages"
)

// TestMessages provokes every message of the package.
func TestMessages(t *testing.T) {
	lines := slices.Concat(messagesOfServices(t), messagesOfEvents(t), messagesOfEvidence(t))
	messages.Check(t, lines,
		"fmt.Errorf", "fmt.Sprintf", "errors.New", "problem.Problem", "addProblem", "unknown", "Info", "Warn", "write")
}

func messagesOfServices(t *testing.T) []string {
	type annotations = map[string]string
	var services []*corev1.Service
	for _, c := range serviceCases(t) {
		services = append(services, c.Service(t))
	}
	for _, c := range valueCases {
		services = append(services, withValue(c.key, c.value))
	}
	for _, a := range []annotations{
		{hetzner: "true", openstack: "false"},
		{stackit: "true", stackit + "-ports-filter": "http"},
		{scalewayV2: "*", scwCheck + "type": "http"},
		{vultr: "true", prefix + "vultr-loadbalancer-healthcheck-path": "/"},
		{alibaba: "on", aliCheck + "type": "http"},
	} {
		services = append(services, honouring(a))
	}
	for _, change := range []func(*corev1.Service){
		func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort },
		func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("http") },
		func(s *corev1.Service) {
			*s = *honouring(annotations{awsPorts: "80"})
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
		{err: errNoList},
		{service: balanced(nil), late: forbidden},
		{service: balanced(nil), late: errShortWatches},
	} {
		r := newTestReconciler(t)
		r.observeAt(1, e)
		lines.add(r)
	}
	for _, key := range []string{ociLB, ociNLB} { // the cloud does not follow their removal
		r := newTestReconciler(t)
		s := honouring(map[string]string{key: "1"})
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
	lines = append(lines, r.Metrics.warning(r.time))
	configMap := newRecord(nil, nil, types.NamespacedName{Namespace: "consul", Name: "usher-balancers"})
	for _, err := range []error{apierrors.NewNotFound(schema.GroupResource{}, ""), forbidden} {
		lines = append(lines, configMap.problem(err).String())
	}
	m := newFakeMemory()
	m.payload = []byte("{")
	newMemory(m, gateway.ID{Name: "edge"}, edge, r.Logger).restore(start)
	return append(lines, notRemembered(errors.New("the disk is full")).String())
}

// messagesOfEvidence returns what a listener reports whose Service switches headers on, and one that is off.
func messagesOfEvidence(t *testing.T) []string {
	var lines lineWriter
	at := func(minute float64, count int, address string) evidence.Tally {
		return evidence.Tally{Count: count, First: at(0), Last: at(minute), Began: at(minute), Addresses: []netip.Addr{netip.MustParseAddr(address)}}
	}
	for _, c := range []struct {
		service *corev1.Service
		reports []evidence.Summary // at minutes 61, 62 and so on
	}{
		{service("true", 0), []evidence.Summary{{WithoutHeader: at(61, 1240, balancerA)}}},
		{service("true", 0), []evidence.Summary{{WithoutHeader: at(61, 13, balancerB), WithHeader: at(61, 1227, balancerA)}}},
		{service("true", 0), []evidence.Summary{
			{Refused: at(61, 24, balancerA)},
			{WithoutHeader: at(62, 30, balancerA)},
			{WithHeader: at(63, 10, balancerA)},
			{WithHeader: at(64, 10, balancerA)},
			{WithHeader: at(65, 10, balancerA)},
		}},
		{service("true", 0), []evidence.Summary{
			{WithHeader: at(61, 10, balancerA)},
			{WithHeader: at(61, 10, balancerA), Refused: at(62, 24, balancerA)},
			{WithoutHeader: at(63, 30, balancerA)},
		}},
		{service("true", 0), []evidence.Summary{{WithHeader: at(60.9, 10, balancerA), Refused: at(61, 24, balancerA)}}},
		{service("true", 0), []evidence.Summary{{WithHeader: at(60.9, 10, balancerA), Refused: at(61, 24, client)}}},
		{service("true", 0), []evidence.Summary{{Refused: at(61, 24, balancerA)}, {}, {}, {}, {}, {}}},
		{service("true", 0), []evidence.Summary{{Untrusted: at(61, 24, client), Restricted: true}}},
		{service("", 0), []evidence.Summary{{Malformed: at(61, 24, balancerA)}}},
		{service("", 0), []evidence.Summary{
			{Malformed: at(61, 24, balancerA), OnlyMalformed: at(61, 24, balancerA), Restricted: true},
			{},
			{Malformed: at(63, 24, client), Restricted: true},
			{Malformed: at(64, 24, balancerA), OnlyMalformed: at(64, 24, balancerA), Restricted: true},
			{WithoutHeader: at(67, 24, balancerA), Restricted: true},
		}},
	} {
		r := newTestReconciler(t)
		r.Evidence, r.Logger = silent{}, slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
		r.observeAt(60, serviceIs(onePort(c.service)))
		for i, summary := range c.reports {
			r.observe(evidence.Ports{8080: withHeaderSenders(summary)})
			if c.service.Annotations == nil {
				r.observe(evidence.Ports{9090: summary})
			}
			r.advanceTo(61 + float64(i))
			lines.add(r)
		}
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
