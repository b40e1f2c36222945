package gateway

import (
	"time"

	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// KubernetesService names the Kubernetes Service in front of a gateway's instance, as consul-k8s registers it. The
// zero value names none.
type KubernetesService struct{ Namespace, Name string }

// String returns what messages call it.
func (s KubernetesService) String() string {
	return "Kubernetes Service " + s.Namespace + "/" + s.Name
}

// Balancer is what follows for listeners from the settings of the load balancer in front of them. The zero value is
// a load balancer whose settings are not known.
type Balancer struct {
	Ports      map[int]PortState // by port
	OtherPorts PortState         // of listeners that the load balancer does not send traffic to
	// PreservesClientIP means that the load balancer connects from the clients' addresses, so no list of networks
	// can name it.
	PreservesClientIP bool
	Problems          []problem.Problem
}

// PortState is what follows for one listener.
type PortState struct {
	Mode         settings.Mode    // what the mode Auto stands for; "" while that is not known
	ProxyVersion settings.Version // of the PROXY header that the load balancer sends; "" if none, or if not known
	// OnlyTrusted means that the load balancer's settings switch no headers on, but it sends them. Then Mode, which is
	// Permissive, is for listeners with trusted_cidrs only: they believe no others. All others are Off.
	OnlyTrusted bool
	// GraceEnd is until when Mode is Permissive because the load balancer is being switched; zero: it is not. Reason is what
	// connections have shown where that decides Mode, else empty. Both are for people only.
	GraceEnd time.Time
	Reason   string
}

var (
	noBalancer      = &Balancer{OtherPorts: PortState{Mode: settings.Off}} // of an instance without a Service to watch
	unknownBalancer = &Balancer{}                                          // its Service has not been read yet
)

// BalancerOf returns what is known of the load balancer in front of an instance. While nothing changes, it is the
// same value.
func (s *Snapshot) BalancerOf(in *Instance) *Balancer {
	if s.Balancers == nil || in.Kubernetes == (KubernetesService{}) {
		return noBalancer
	}
	if b := s.Balancers[in.Kubernetes]; b != nil {
		return b
	}
	return unknownBalancer
}

// ForPort returns what follows for the listener on a port.
func (b *Balancer) ForPort(port int) PortState {
	if state, ok := b.Ports[port]; ok {
		return state
	}
	return b.OtherPorts
}

// HasAutoListener reports whether a listener of an instance has the mode Auto.
func (s *Snapshot) HasAutoListener(in *Instance) bool {
	if s.Entry == nil {
		return false
	}
	for _, l := range s.Entry.Listeners {
		if mode, _, known := s.ModeSetting(in, l.Port); known && mode == settings.Auto {
			return true
		}
	}
	return false
}
