package consul

import (
	"context"

	"github.com/usherproxy/usher/internal/gateway"
)

// podType reads the registration of one instance of a gateway.
var podType = &queryType{
	name: "pod", path: "/v1/catalog/service/", needs: "service:read on the gateway and node:read",
	decode: decodeList("registrations", decodePods),
}

// Pod is the pod that an instance of a gateway was registered for. What consul-k8s did not write is empty.
type Pod struct{ Namespace, UID string }

type podRegistration struct {
	ServiceID   string
	ServiceMeta struct {
		Namespace string `json:"k8s-namespace"`
		UID       string `json:"pod-uid"`
	}
}

func decodePods(_ *[]Pod, list []*podRegistration, r response) (*[]Pod, error) {
	if len(list) == 0 && r.filtered {
		return nil, errAllFiltered
	}
	pods := []Pod{}
	for _, p := range list {
		if p.ServiceID == "" {
			return nil, unexpected("a registration has no service ID")
		}
		pods = append(pods, Pod{Namespace: p.ServiceMeta.Namespace, UID: p.ServiceMeta.UID})
	}
	return &pods, nil
}

// PodsOf returns the pods that the instances of a gateway with this service ID were registered for: usually one, several if
// nodes have the same service ID, and none if there is no such instance. The ID must be the name of a pod.
func (c *Client) PodsOf(ctx context.Context, id gateway.ID, serviceID string) ([]Pod, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, authorizeTimeout, noAnswer(authorizeTimeout))
	defer cancel()
	q := serviceQuery(podType, gateway.ServiceName(id))
	q.filter = `ServiceID == "` + serviceID + `"`
	r, err := c.send(ctx, c.aclHTTP, q, 0, 0)
	if err != nil {
		return nil, err
	}
	pods, err := valueOf[[]Pod](q, r)
	if err != nil {
		return nil, err
	}
	return *pods, nil
}
