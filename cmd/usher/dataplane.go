package main

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/bootstrap"
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/dataplane"
	"github.com/usherproxy/usher/xds"
)

// listenDataplane binds --dataplane-addr, if it is set, and adds the server for it. It has the log and the credentials of the
// xDS server, which answers for gateways.
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
		XDS: s.xds, DialConsul: client.DialGRPC, Logger: like.Logger, Credentials: like.Credentials,
		IsGateway: func(ctx context.Context, n xds.Node) (bool, error) {
			id, err := controlplane.GatewayOf(n)
			if err != nil {
				return false, err
			}
			return client.IsIngressGateway(ctx, id)
		},
		MetadataKeys: like.MetadataKeys, BootstrapTemplate: template,
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
