//go:build e2e

package main

import (
	"fmt"
	"strings"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	xds "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/wire"
)

// resource is what the bench remembers of one version of a resource. All Envoys
// share it.
type resource struct {
	name, version string
	refs          []reference // what it makes an Envoy ask for by name
	endpoints     bool        // it has endpoints
	hosts         int         // virtual hosts
}

// reference is the name of a resource that another one needs.
type reference struct{ typeURL, name string }

// identityOf identifies a version of a resource.
type identityOf struct{ typeURL, name, version string }

// resourceCache reads each version of a resource once, whichever Envoy gets it first.
type resourceCache struct {
	mu    sync.Mutex
	known map[identityOf]*resource
}

// read returns what is remembered of a resource.
func (l *resourceCache) read(typeURL string, i fakeenvoy.LeanResource) (*resource, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A look-up with the conversions inside allocates nothing.
	if r := l.known[identityOf{typeURL, string(i.Name), string(i.Version)}]; r != nil {
		return r, nil
	}
	r, err := readResource(typeURL, i)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", typeURL, i.Name, err)
	}
	if l.known == nil {
		l.known = map[identityOf]*resource{}
	}
	l.known[identityOf{typeURL, r.name, r.version}] = r
	return r, nil
}

func readResource(typeURL string, i fakeenvoy.LeanResource) (*resource, error) {
	r := &resource{name: string(i.Name), version: string(i.Version)}
	var err error
	switch typeURL {
	case xds.ClusterType:
		r.refs, err = clusterRefs(i.Body)
	case xds.ListenerType:
		r.refs, err = listenerRefs(i.Body)
	case xds.EndpointType:
		// Field 2 of ClusterLoadAssignment holds the localities.
		err = wire.Fields(i.Body, func(n protowire.Number, value []byte) error {
			r.endpoints = r.endpoints || n == 2 && len(value) > 0
			return nil
		})
	case xds.RouteType:
		// Field 2 of RouteConfiguration holds the virtual hosts.
		err = wire.Fields(i.Body, func(n protowire.Number, _ []byte) error {
			if n == 2 {
				r.hosts++
			}
			return nil
		})
	}
	return r, err
}

func clusterRefs(body []byte) ([]reference, error) {
	var c clusterv3.Cluster
	if err := proto.Unmarshal(body, &c); err != nil {
		return nil, err
	}
	var refs []reference
	if c.GetType() == clusterv3.Cluster_EDS {
		name := c.GetEdsClusterConfig().GetServiceName()
		if name == "" {
			name = c.Name
		}
		refs = append(refs, reference{xds.EndpointType, name})
	}
	var tls tlsv3.UpstreamTlsContext
	if err := unpack(c.GetTransportSocket().GetTypedConfig(), &tls); err != nil {
		return nil, err
	}
	return append(refs, secretRefs(tls.GetCommonTlsContext())...), nil
}

func listenerRefs(body []byte) ([]reference, error) {
	var l listenerv3.Listener
	if err := proto.Unmarshal(body, &l); err != nil {
		return nil, err
	}
	var refs []reference
	for _, chain := range l.FilterChains {
		for _, filter := range chain.Filters {
			var hcm hcmv3.HttpConnectionManager
			if err := unpack(filter.GetTypedConfig(), &hcm); err != nil {
				return nil, err
			}
			if name := hcm.GetRds().GetRouteConfigName(); name != "" {
				refs = append(refs, reference{xds.RouteType, name})
			}
		}
	}
	return refs, nil
}

func secretRefs(c *tlsv3.CommonTlsContext) []reference {
	var refs []reference
	for _, s := range c.GetTlsCertificateSdsSecretConfigs() {
		refs = append(refs, reference{xds.SecretType, s.GetName()})
	}
	validation := c.GetValidationContextSdsSecretConfig()
	if validation == nil {
		validation = c.GetCombinedValidationContext().GetValidationContextSdsSecretConfig()
	}
	if validation != nil {
		refs = append(refs, reference{xds.SecretType, validation.GetName()})
	}
	return refs
}

// unpack decodes what an Any carries if it is of m's type.
func unpack(a *anypb.Any, m proto.Message) error {
	if !a.MessageIs(m) {
		return nil
	}
	return a.UnmarshalTo(m)
}

// serviceOf returns the service whose cluster or endpoints have the name, as
// Consul makes it: web.default.dc1.internal.<trust domain>.
func serviceOf(name string) string {
	service, _, _ := strings.Cut(name, ".")
	return service
}
