package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/configdir"
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/loadbalancer"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/xds"
)

// configSource watches gateways: in Consul or in files.
type configSource interface {
	controlplane.Source
	readinessChecker
	Run(ctx context.Context) error
}

// newSource returns the source that the flags select, the authorizer that goes with it, and the client of Consul that both
// use; nil for files.
func (o serveOptions) newSource(
	log *slog.Logger, metrics prometheus.Registerer, problems *controlplane.Problems,
) (configSource, xds.Authorizer, *consul.Client, error) {
	if o.configDir == "" {
		client, err := consul.NewClient(consul.Config{
			HTTPAddr: o.consulHTTPAddr, GRPCAddr: o.consulGRPCAddr, Logger: log, Metrics: consul.NewMetrics(metrics),
		})
		if err != nil {
			return nil, nil, nil, err
		}
		return consul.NewWatcher(client, consul.WatcherOptions{}), consulAuthorizer{consul.NewAuthorizer(client, o.staleIfError)}, client, nil
	}
	if o.dataplaneAddr != "" {
		return nil, nil, nil, errors.New("--dataplane-addr: consul-dataplane needs Consul; remove --config-dir, or --dataplane-addr")
	}
	if o.consulHTTPAddr != "" || o.consulGRPCAddr != "" {
		return nil, nil, nil, errors.New("--config-dir: Usher reads files instead of Consul; remove --consul-http-addr and --consul-grpc-addr, or --config-dir")
	}
	dir := configdir.NewSource(o.configDir, configdir.Options{
		Logger: log,
		Report: func(found []problem.Problem) { problems.Report("the config directory", found) },
	})
	if err := dir.Load(); err != nil {
		return nil, nil, nil, err
	}
	return dir, allowAll{}, nil, nil
}

// balancerSource watches the load balancers that listeners with the mode auto follow.
type balancerSource interface {
	controlplane.BalancerSource
	warner
}

// connectKubernetes returns the source of load balancers in Kubernetes; nil outside it.
func (o serveOptions) connectKubernetes(log *slog.Logger, metrics prometheus.Registerer) (balancerSource, error) {
	record, err := parseRecord(o.balancerRecord)
	if err != nil {
		return nil, err
	}
	client, err := loadbalancer.Connect(o.kubeconfig)
	if errors.Is(err, loadbalancer.ErrNotInCluster) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return loadbalancer.NewWatcher(loadbalancer.Options{
		Client: client, Grace: o.balancerGrace, Logger: log, Metrics: loadbalancer.NewMetrics(metrics), Record: record,
	}), nil
}

// parseRecord parses NAMESPACE/NAME; "" names nothing.
func parseRecord(text string) (types.NamespacedName, error) {
	namespace, name, ok := strings.Cut(text, "/")
	if text != "" && (!ok || namespace == "" || name == "" || strings.Contains(name, "/")) {
		return types.NamespacedName{}, fmt.Errorf("--balancer-record %s: use the NAMESPACE/NAME of a ConfigMap, such as consul/usher-balancers", text)
	}
	return types.NamespacedName{Namespace: namespace, Name: name}, nil
}

// consulAuthorizer asks Consul: the caller's token needs service:write on the gateway. It refuses with the codes of
// Consul's own xDS.
type consulAuthorizer struct{ consul *consul.Authorizer }

// Authorize implements xds.Authorizer.
func (a consulAuthorizer) Authorize(ctx context.Context, c xds.Caller, n xds.Node) error {
	id, err := controlplane.GatewayOf(n)
	if err != nil {
		return err
	}
	err = a.consul.Authorize(ctx, consul.Caller{Token: string(c.Token), Address: c.Network.String(), Again: c.Again}, id)
	return refusal(err, id)
}

// refusal returns the gRPC status for an error of the authorizer.
func refusal(err error, id gateway.ID) error {
	switch {
	case errors.Is(err, consul.ErrUnknownToken):
		return status.Errorf(codes.Unauthenticated,
			"consul does not know the stream's x-consul-token; use a token with service:write on the gateway %q", id)
	case errors.Is(err, consul.ErrDenied):
		return status.Errorf(codes.PermissionDenied, "the stream's x-consul-token needs service:write on the gateway %q", id)
	}
	return err
}

// allowAll authorizes every caller: files contain neither tokens nor certificates and keys of a mesh.
type allowAll struct{}

// Authorize implements xds.Authorizer.
func (allowAll) Authorize(context.Context, xds.Caller, xds.Node) error { return nil }

// transport returns the certificate of the xDS server and of the dataplane server; nil for plain text.
func (o serveOptions) transport(log *slog.Logger) (*xds.KeyPair, error) {
	switch {
	case (o.tlsCert == "") != (o.tlsKey == ""):
		return nil, errors.New("--tls-cert and --tls-key belong together: set both, or neither")
	case o.tlsCert != "":
		return xds.NewKeyPair(o.tlsCert, o.tlsKey, log)
	case o.insecurePlaintext:
		return nil, nil
	case !isLocal(o.xdsAddr):
		return nil, errors.New("--xds-addr " + o.xdsAddr + ": private keys would cross the network unencrypted; " +
			"set --tls-cert and --tls-key, listen on loopback, or set --insecure-plaintext")
	case o.dataplaneAddr != "" && !isLocal(o.dataplaneAddr):
		return nil, errors.New("--dataplane-addr " + o.dataplaneAddr + ": tokens and private keys would cross the network unencrypted; " +
			"set --tls-cert and --tls-key, listen on loopback, or set --insecure-plaintext")
	}
	return nil, nil
}
