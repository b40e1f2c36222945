package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/tokenreview"
)

// fakePods reviews tokens and knows registrations.
type fakePods struct {
	tokens     map[string]tokenreview.Pod
	registered map[string][]consul.Pod // by service ID
	reads      int
	err        error // of registrations
}

func (f *fakePods) Review(_ context.Context, token string) (tokenreview.Pod, error) {
	pod, ok := f.tokens[token]
	if !ok {
		return pod, tokenreview.ErrRefused
	}
	return pod, nil
}

func (f *fakePods) PodsOf(_ context.Context, _ gateway.ID, serviceID string) ([]consul.Pod, error) {
	f.reads++
	return f.registered[serviceID], f.err
}

func newFakePods() *fakePods {
	return &fakePods{
		tokens: map[string]tokenreview.Pod{
			"one":       {Namespace: "consul", Name: "edge-1", UID: "uid-1"},
			"before":    {Namespace: "consul", Name: "edge-1", UID: "uid-0"},
			"elsewhere": {Namespace: "other", Name: "edge-1", UID: "uid-2"},
			"old":       {Namespace: "consul", Name: "edge-2", UID: "uid-3"},
			"alone":     {Namespace: "consul", Name: "edge-3", UID: "uid-4"},
		},
		registered: map[string][]consul.Pod{
			"edge-1": {{Namespace: "consul", UID: "uid-1"}},
			"edge-2": {{Namespace: "consul"}}, // charts that register no UID
		},
	}
}

func TestABearerTokenHasToBeTheOneOfTheEnvoysPod(t *testing.T) {
	id := gateway.ID{Name: "edge"}
	for _, tc := range []struct {
		name, token, serviceID string
		want                   error
		text                   string
	}{
		{"the pod's", "one", "edge-1", nil, ""},
		{"registered without a UID", "old", "edge-2", nil, ""},
		{"another pod's", "one", "edge-2", errOtherPod, `"edge-1", and the Envoy's node.id is "edge-2"`},
		{"of an earlier pod of this name", "before", "edge-1", errOtherPod, "UID uid-0"},
		{"of another namespace", "elsewhere", "edge-1", errOtherPod, `namespace "other"`},
		{"refused", "none", "edge-1", tokenreview.ErrRefused, ""},
	} {
		err := newPodCheck(newFakePods(), newFakePods()).authorize(t.Context(), tc.token, id, tc.serviceID)
		if !errors.Is(err, tc.want) || err != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %v %q", tc.name, err, tc.want, tc.text)
		}
	}
	f := newFakePods()
	err := newPodCheck(f, f).authorize(t.Context(), "alone", id, "edge-3")
	if err == nil || errors.Is(err, errOtherPod) || errors.Is(err, tokenreview.ErrRefused) || !strings.Contains(err.Error(), "not registered") {
		t.Errorf("a pod that is not registered: %v, want no answer", err)
	}
}

// The registration of a pod is read once. It may be missing later, as while consul-k8s writes it again.
func TestARegistrationIsReadOnce(t *testing.T) {
	f := newFakePods()
	p := newPodCheck(f, f)
	for range 10 {
		if err := p.authorize(t.Context(), "one", gateway.ID{Name: "edge"}, "edge-1"); err != nil {
			t.Fatal(err)
		}
		f.registered, f.err = nil, errors.New("no answer")
	}
	if f.reads != 1 {
		t.Errorf("it was read %d times", f.reads)
	}
	if err := p.authorize(t.Context(), "one", gateway.ID{Name: "another"}, "edge-1"); err == nil || errors.Is(err, errOtherPod) {
		t.Errorf("another gateway: %v, want no answer", err)
	}
	delete(f.tokens, "one")
	if err := p.authorize(t.Context(), "one", gateway.ID{Name: "edge"}, "edge-1"); !errors.Is(err, tokenreview.ErrRefused) {
		t.Errorf("a token that Kubernetes no longer accepts: %v", err)
	}
}
