package gateway

import (
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// KubernetesService names a Service of Kubernetes: the one in front of a
// gateway's instance, as consul-k8s registers it. The zero value names none.
type KubernetesService struct{ Namespace, Name string }

// Balancer is what follows for listeners from what the load balancer in front
// of them was told. The zero value is a balancer of which nothing is known.
type Balancer struct {
	Ports      map[int]PortState // by port
	OtherPorts PortState         // of listeners that the balancer does not lead to
	// PreservesClientIP says that connections come from the clients' own addresses, so
	// that no list of networks can name the balancer.
	PreservesClientIP bool
	Problems          []problem.Problem
}

// PortState is what follows for one listener.
type PortState struct {
	// Mode is what the mode Auto means; "" while nobody knows.
	Mode settings.Mode
	// Sends is the version of the header that the balancer sends; "" if it sends
	// none, or it is not known which.
	ProxyVersion settings.Version
}

// noBalancer is what there is outside Kubernetes.
var noBalancer = &Balancer{OtherPorts: PortState{Mode: settings.Off}}

// unknownBalancer is one of which nothing was heard.
var unknownBalancer = &Balancer{}

// BalancerOf gives what is known of the balancer in front of an instance. It
// stays the same value while nothing changes.
func (s *Snapshot) BalancerOf(in *Instance) *Balancer {
	if s.Balancers == nil || in.Kubernetes == (KubernetesService{}) {
		return noBalancer
	}
	if b := s.Balancers[in.Kubernetes]; b != nil {
		return b
	}
	return unknownBalancer
}

// ForPort gives what follows for the listener on a port.
func (b *Balancer) ForPort(port int) PortState {
	if behind, there := b.Ports[port]; there {
		return behind
	}
	return b.OtherPorts
}

// HasAutoListener says whether any listener of an instance has the mode Auto.
func (s *Snapshot) HasAutoListener(in *Instance) bool {
	if s.Entry == nil {
		return false
	}
	for _, l := range s.Entry.Listeners {
		if p, known := settings.Resolve(l.Port, s.FileAll, s.ProxyDefaults, in.Registration, s.FileGateway); known && p.ProxyProtocol.Mode == settings.Auto {
			return true
		}
	}
	return false
}
