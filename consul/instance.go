package consul

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// instancesKind reads the registered instances of a gateway, healthy or not,
// with proxy-defaults and service-defaults merged in. It wakes up for changes
// of those, too.
var instancesType = &queryType{
	name:   "instances",
	path:   "/v1/health/service/",
	params: []string{"merge-central-config"},
	decode: decodeAs(decodeInstances),
}

// Consul's kind of service of ingress gateways.
const ingressGatewayKind = "ingress-gateway"

// registrations are the instances of a gateway, sorted by node and ID.
type registrations struct {
	list []*registration
}

// decodeInstances leaves out the checks, whose outputs change all the time: an
// instance that fails them is served all the same.
func decodeInstances(_ *registrations, a answer) (*registrations, error) {
	list, err := decodeRegistrations(a)
	if err != nil {
		return nil, err
	}
	out := &registrations{}
	for _, r := range list {
		if r.Service.Kind == ingressGatewayKind {
			r.Checks = nil
			out.list = append(out.list, r)
		}
	}
	slices.SortFunc(out.list, func(a, b *registration) int {
		return cmp.Or(cmp.Compare(a.Node.Node, b.Node.Node), cmp.Compare(a.Service.ID, b.Service.ID))
	})
	return out, nil
}

// instanceID names an instance: several nodes may have the same service ID.
type instanceID struct {
	node, service string
}

// mergeTime is how long the settings of an instance may be bad for no other
// reason than that proxy-defaults has changed: its agent needs a moment to merge
// that into the registration, which says the former value as its own until then.
const mergeTime = time.Second

// instances makes the model's instances, and remembers in s what their own
// settings were when they were last good, and since when they are bad.
func (s *source) instances(regs *registrations, d *proxyDefaults, now time.Time) ([]*gateway.Instance, []problem.Problem) {
	var out []*gateway.Instance
	var problems []problem.Problem
	own := map[instanceID]settings.Layer{}
	bad := map[instanceID]time.Time{}
	before := map[instanceID]*gateway.Instance{}
	if s.last != nil {
		for _, in := range s.last.Instances {
			before[instanceID{in.Node, in.ServiceID}] = in
		}
	}
	for _, r := range regs.list {
		id := instanceID{r.Node.Node, r.Service.ID}
		in, wrong := r.instance(s.settings[id], d.config[settings.Key])
		own[id] = in.Registration
		out = append(out, reuse(before[id], in))
		problems = append(problems, wrong.config...)
		if len(wrong.usher) == 0 {
			continue
		}
		bad[id] = now
		if since, known := s.badSince[id]; known {
			bad[id] = since
		}
		if now.Sub(bad[id]) >= mergeTime {
			problems = append(problems, wrong.usher...)
		}
	}
	s.settings, s.badSince = own, bad
	return out, problems
}

// merging says how long it takes until bad settings of an instance may be
// reported; idle when there are none that wait.
func (s *source) mergeDelay(now time.Time) time.Duration {
	left := noDelay
	for _, since := range s.badSince {
		if wait := mergeTime - now.Sub(since); wait > 0 {
			left = min(left, wait)
		}
	}
	return left
}

// kubernetes gives the Service that consul-k8s has found in front of an
// instance; zero for one that is not in Kubernetes.
func (r *registration) kubernetes() gateway.KubernetesService {
	meta := r.Service.Meta
	if meta.KubernetesNamespace == "" || meta.KubernetesService == "" {
		return gateway.KubernetesService{}
	}
	return gateway.KubernetesService{Namespace: meta.KubernetesNamespace, Name: meta.KubernetesService}
}

// wrong is what is wrong with a registration: with the keys that Consul knows,
// and with Usher's own.
type registrationProblems struct {
	config, usher []problem.Problem
}

// instance makes one instance. before are its own settings until now, and
// inherited is what proxy-defaults says of them.
func (r *registration) instance(before settings.Layer, inherited any) (*gateway.Instance, registrationProblems) {
	where := fmt.Sprintf("service %q on node %q", r.Service.ID, r.Node.Node)
	config, inConfig := proxyConfig(where, r.Service.Proxy.Config)
	own, inOwn := before.Next(where, settings.StripInherited(r.Service.Proxy.Config[settings.Key], inherited))
	return &gateway.Instance{
		Node:            r.Node.Node,
		ServiceID:       r.Service.ID,
		NodeAddress:     r.Node.Address,
		Address:         r.Service.Address,
		Port:            r.Service.Port,
		TaggedAddresses: r.Service.TaggedAddresses,
		Kubernetes:      r.kubernetes(),
		Config:          config,
		AccessLogs:      r.Service.Proxy.AccessLogs,
		Registration:    own,
	}, registrationProblems{config: inConfig, usher: inOwn}
}
