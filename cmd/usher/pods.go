package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/tokenreview"
)

// errOtherPod means that a bearer token is valid, but the one of another pod than the Envoy's.
var errOtherPod = errors.New("it is of another pod")

// podReviewer reviews tokens at Kubernetes.
type podReviewer interface {
	Review(ctx context.Context, token string) (tokenreview.Pod, error)
}

// podRegistrations reads the pods that a gateway's instances were registered for.
type podRegistrations interface {
	PodsOf(ctx context.Context, id gateway.ID, serviceID string) ([]consul.Pod, error)
}

// maxRegisteredPods bounds how many pods a podCheck remembers.
const maxRegisteredPods = 65_536

// podCheck checks that a bearer token is the one of the pod that an Envoy runs in: its name is the service ID, and its
// namespace and UID are those of the registration.
type podCheck struct {
	reviewer      podReviewer
	registrations podRegistrations
	registered    *lru.Cache[registeredPod, struct{}]
}

// registeredPod is a pod whose registration a podCheck has read: a pod's UID never changes.
type registeredPod struct {
	gateway gateway.ID
	pod     tokenreview.Pod
}

func newPodCheck(reviewer podReviewer, registrations podRegistrations) *podCheck {
	p := &podCheck{reviewer: reviewer, registrations: registrations}
	p.registered, _ = lru.New[registeredPod, struct{}](maxRegisteredPods) // fails only for sizes below 1
	return p
}

// authorize returns nil if the token is the one of the pod, and errOtherPod or tokenreview.ErrRefused if it is not. Any other
// error means that there is no answer.
func (p *podCheck) authorize(ctx context.Context, token string, id gateway.ID, serviceID string) error {
	pod, err := p.reviewer.Review(ctx, token)
	if err != nil {
		return err
	}
	if pod.Name != serviceID {
		return fmt.Errorf("%w: %q, and the Envoy's node.id is %q; the gateway's service ID has to be the pod's name", errOtherPod, pod.Name, serviceID)
	}
	key := registeredPod{id, pod}
	if p.registered.Contains(key) {
		return nil
	}
	found, err := p.registrations.PodsOf(ctx, id, serviceID)
	switch {
	case err != nil:
		return fmt.Errorf("registration of the pod %q: %w", serviceID, err)
	case len(found) == 0:
		return fmt.Errorf("the pod %q is not registered in Consul; Envoy connects again; see the log of consul-k8s if this lasts", serviceID)
	case !slices.ContainsFunc(found, func(r consul.Pod) bool { return isPod(r, pod) }):
		return fmt.Errorf("%w: the one in the namespace %q with the UID %s, and %q is registered in Consul for another one",
			errOtherPod, pod.Namespace, pod.UID, serviceID)
	}
	p.registered.Add(key, struct{}{})
	return nil
}

// isPod reports whether a registration is the pod's. What the registration does not say is not compared.
func isPod(r consul.Pod, pod tokenreview.Pod) bool {
	return (r.UID == "" || r.UID == pod.UID) && (r.Namespace == "" || r.Namespace == pod.Namespace)
}
