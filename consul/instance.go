package consul

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/usherproxy/usher/gateway"
)

// instancesKind reads the registered instances of a gateway, healthy or not,
// with proxy-defaults and service-defaults merged in. It wakes up for changes
// of those, too.
var instancesKind = &kind{
	name:   "instances",
	path:   "/v1/health/service/",
	params: []string{"merge-central-config"},
	decode: decoding(decodeInstances),
}

// Consul's kind of service of ingress gateways.
const ingressKind = "ingress-gateway"

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
		if r.Service.Kind == ingressKind {
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

// instances makes the model's instances, and remembers in s what their own
// settings were when they were last good.
func (s *source) instances(regs *registrations, d *defaults) ([]*gateway.Instance, []gateway.Problem) {
	var out []*gateway.Instance
	var problems []gateway.Problem
	own := map[instanceID]gateway.Layer{}
	before := map[instanceID]*gateway.Instance{}
	if s.last != nil {
		for _, in := range s.last.Instances {
			before[instanceID{in.Node, in.ServiceID}] = in
		}
	}
	for _, r := range regs.list {
		id := instanceID{r.Node.Node, r.Service.ID}
		in, found := r.instance(s.own[id], d.config[gateway.Key])
		own[id] = in.Own
		problems = append(problems, found...)
		out = append(out, keep(before[id], in))
	}
	s.own = own
	return out, problems
}

// instance makes one instance. before are its own settings until now, and
// inherited is what proxy-defaults says of them.
func (r *registration) instance(before gateway.Layer, inherited any) (*gateway.Instance, []gateway.Problem) {
	where := fmt.Sprintf("service %q on node %q", r.Service.ID, r.Node.Node)
	config, problems := proxyConfig(where, r.Service.Proxy.Config)
	own, found := before.Next(where, subtract(r.Service.Proxy.Config[gateway.Key], inherited))
	return &gateway.Instance{
		Node:            r.Node.Node,
		ServiceID:       r.Service.ID,
		NodeAddress:     r.Node.Address,
		Address:         r.Service.Address,
		Port:            r.Service.Port,
		TaggedAddresses: r.Service.TaggedAddresses,
		Config:          config,
		AccessLogs:      r.Service.Proxy.AccessLogs,
		Own:             own,
	}, append(problems, found...)
}
