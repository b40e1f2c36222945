package main

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/bootstrap"
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/dataplane"
	"github.com/usherproxy/usher/xds"
)

// listenDataplane binds --dataplane-addr, if it is set, and adds the server for it. It has the log of the xDS server, which
// answers for gateways.
func (s *servers) listenDataplane(ctx context.Context, o serveOptions, client *consul.Client, like xds.Options, metrics prometheus.Registerer) error {
	if o.dataplaneAddr == "" {
		return nil
	}
	template, err := dataplaneTemplate(o.dataplaneDrainTime)
	if err != nil {
		return err
	}
	if s.dataplaneListener, err = listen(ctx, o.dataplaneAddr); err != nil {
		return fmt.Errorf("--dataplane-addr %s: %w", o.dataplaneAddr, err)
	}
	s.dataplane = dataplane.NewServer(dataplane.Options{
		XDS: s.xds, DialConsul: client.DialGRPC, Generation: client.Generation, Logger: like.Logger, Credentials: s.transport.credentials("dataplane"),
		KindOf:       func(ctx context.Context, n xds.Node) (dataplane.Kind, error) { return kindOf(ctx, client, n) },
		MetadataKeys: like.MetadataKeys, BootstrapTemplate: template, Reports: like.Reports,
		Metrics: dataplane.NewMetrics(metrics),
		Limits: dataplane.Limits{
			Connections:        dataplaneConnections(maxFiles(), o.limits.Connections),
			ConnectionsPerPeer: o.limits.ConnectionsPerPeer,
			Calls:              o.limits.Streams,
			CallsPerPeer:       o.limits.StreamsPerPeer,
		},
	})
	return nil
}

// kindOf returns what Consul's catalog has for a node. Consul serves the proxy with the node's id on the node that its metadata
// names. A gateway whose registration is not there (yet) is known by its cluster.
func kindOf(ctx context.Context, client *consul.Client, n xds.Node) (dataplane.Kind, error) {
	id, err := controlplane.GatewayOf(n)
	if err != nil {
		return dataplane.NotRegistered, err
	}
	if node := n.Metadata["node_name"]; node != "" {
		switch proxy, found, err := client.ProxyOn(ctx, node, id, n.ID); {
		case err != nil:
			return dataplane.NotRegistered, err
		case found && !proxy.IsIngressGateway():
			return dataplane.Other, nil
		case found && proxy.Service == id.Name:
			return dataplane.Gateway, nil
		case found:
			return dataplane.NotRegistered, status.Errorf(codes.InvalidArgument,
				"%q is registered as an ingress gateway, and not as one of the Envoy's node.cluster %q; set node.cluster to the gateway's service name",
				n.ID, id.Name)
		}
	}
	isGateway, err := client.IsIngressGateway(ctx, id)
	if err != nil || !isGateway {
		return dataplane.NotRegistered, err
	}
	return dataplane.GatewayByName, nil
}

// dataplaneConnections returns how many connections the dataplane server may have: as many as the xDS server, if the
// process may open so many files.
func dataplaneConnections(files, xdsConnections int) int {
	return max(1, min(xdsConnections, files-reservedFiles-xdsConnections))
}

// dataplaneTemplate returns the bootstrap's template for gateways whose consul-dataplane connects to Usher. It is for any
// release of Envoy, because consul-dataplane does not say which one it starts.
func dataplaneTemplate(drainTime time.Duration) (string, error) {
	if drainTime == 0 {
		return "", nil
	}
	return bootstrap.DataplaneTemplate(bootstrap.DataplaneOptions{DrainTime: drainTime})
}
