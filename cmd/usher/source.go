package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/configdir"
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/loadbalancer"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/statedir"
	"github.com/usherproxy/usher/internal/tokenreview"
	"github.com/usherproxy/usher/xds"
)

// configSource watches gateways: in Consul or in files.
type configSource interface {
	controlplane.Source
	readinessChecker
	Run(ctx context.Context) error
}

// newSource returns the source that the flags select, the authorizer that goes with it, and the client of Consul that both
// use; nil for files. state may be nil.
func (o serveOptions) newSource(
	log *slog.Logger, metrics prometheus.Registerer, problems *controlplane.Problems, state *statedir.Dir,
) (configSource, xds.Authorizer, *consul.Client, error) {
	if o.configDir == "" {
		return o.newConsulSource(log, metrics, problems, state)
	}
	if o.dataplaneAddr != "" {
		return nil, nil, nil, errors.New("--dataplane-addr: consul-dataplane needs Consul; remove --config-dir, or --dataplane-addr")
	}
	if len(o.consulHTTPAddrs)+len(o.consulGRPCAddrs) > 0 {
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

func (o serveOptions) newConsulClient(
	log *slog.Logger, metrics prometheus.Registerer, problems *controlplane.Problems,
) (*consul.Client, error) {
	return consul.NewClient(consul.Config{
		HTTPAddr: strings.Join(o.consulHTTPAddrs, ","), GRPCAddr: strings.Join(o.consulGRPCAddrs, ","),
		LoginAuthMethod: o.loginAuthMethod, LoginBearerTokenFile: o.loginTokenFile,
		Logger: log, Metrics: consul.NewMetrics(metrics), Report: problems.ReportLogged,
	})
}

// newQuietConsulClient returns a client for a command that has neither log nor metrics. It uses the first of Consul's
// addresses that answers.
func (o serveOptions) newQuietConsulClient(ctx context.Context) (*consul.Client, error) {
	log, metrics := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	client, err := o.newConsulClient(log, metrics, controlplane.NewProblems(log, metrics))
	if err == nil {
		client.FindAnswering(ctx)
	}
	return client, err
}

// newConsulSource returns the source and the authorizer that use Consul, and their client.
func (o serveOptions) newConsulSource(
	log *slog.Logger, metrics prometheus.Registerer, problems *controlplane.Problems, state *statedir.Dir,
) (configSource, xds.Authorizer, *consul.Client, error) {
	client, err := o.newConsulClient(log, metrics, problems)
	if err != nil {
		return nil, nil, nil, err
	}
	options := consul.AuthorizerOptions{StaleIfError: o.staleIfError, BearerAuthMethod: o.envoyLoginAuthMethod}
	if state != nil {
		options.Store = state
	}
	authorizer := consulAuthorizer{client: client, consul: consul.NewAuthorizer(client, options)}
	if state != nil {
		state.OnReplaced(authorizer.consul.SaveAgain)
	}
	if o.tokenReview {
		kubernetes, err := kubeapi.Connect(o.kubeconfig)
		if errors.Is(err, kubeapi.ErrNotInCluster) {
			return nil, nil, nil, errors.New("--token-review: Usher does not run in Kubernetes; name the cluster with --kubeconfig, or remove the flag")
		}
		if err != nil {
			return nil, nil, nil, fmt.Errorf("--token-review: %w", err)
		}
		authorizer.kubernetes = kubernetes
		reviewer := tokenreview.New(tokenreview.Options{
			Client: kubernetes, Logger: log, StaleIfError: o.staleIfError,
			Report: func(found []problem.Problem) { problems.ReportLogged("token reviews", found) },
		})
		authorizer.pods = newPodCheck(reviewer, client)
	}
	return consul.NewWatcher(client, consul.WatcherOptions{State: state}), authorizer, client, nil
}

// balancerSource watches the load balancers that listeners with the mode auto follow.
type balancerSource interface {
	controlplane.BalancerSource
	warner
}

// kubernetesSources are what Usher gets from Kubernetes. Outside of it, client and balancers are nil.
type kubernetesSources struct {
	client    *kubeapi.Client
	reports   connectionReports // what Envoys report; Kubernetes may have the key
	balancers balancerSource
}

func (o serveOptions) newKubernetesSources(
	ctx context.Context, log *slog.Logger, metrics prometheus.Registerer, problems *controlplane.Problems, memory loadbalancer.Memory,
) (k kubernetesSources, err error) {
	if k.client, err = o.connectKubernetes(); err != nil {
		return k, err
	}
	if k.reports, err = o.startReports(ctx, reportParts{log, metrics, problems, k.client, memory}); err != nil {
		return k, err
	}
	k.balancers, err = o.newBalancers(k.client, log, metrics, k.reports.shown(), memory)
	return k, err
}

// connectKubernetes returns a client of the API server; nil outside Kubernetes.
func (o serveOptions) connectKubernetes() (*kubeapi.Client, error) {
	client, err := kubeapi.Connect(o.kubeconfig)
	if errors.Is(err, kubeapi.ErrNotInCluster) {
		return nil, nil
	}
	return client, err
}

// newBalancers returns the source of load balancers in Kubernetes; nil outside it.
func (o serveOptions) newBalancers(
	client *kubeapi.Client, log *slog.Logger, metrics prometheus.Registerer, shown loadbalancer.EvidenceSource, memory loadbalancer.Memory,
) (balancerSource, error) {
	var record types.NamespacedName
	if o.balancerRecord != "" {
		var err error
		if record, err = parseObjectName("--balancer-record", o.balancerRecord, "a ConfigMap, such as consul/usher-balancers"); err != nil {
			return nil, err
		}
	}
	switch {
	case client == nil && o.balancerRecord != "":
		return nil, errors.New("--balancer-record: Usher does not run in Kubernetes; name the cluster with --kubeconfig, or remove the flag")
	case client == nil:
		return nil, nil
	}
	return loadbalancer.NewWatcher(loadbalancer.Options{
		Client: client, Grace: o.balancerGrace, Logger: log, Metrics: loadbalancer.NewMetrics(metrics), Record: record, Evidence: shown,
		Memory: memory,
	}), nil
}

// parseObjectName parses the value of a flag that names an object, such as "a ConfigMap, such as consul/usher".
func parseObjectName(flag, text, object string) (types.NamespacedName, error) {
	name, ok := kubeapi.ParseName(text)
	if !ok {
		return types.NamespacedName{}, fmt.Errorf("%s %s: use the NAMESPACE/NAME of %s", flag, text, object)
	}
	return name, nil
}

// consulAuthorizer asks Consul: the caller's token needs service:write on the gateway. It refuses with the codes of
// Consul's own xDS. With pods, a bearer token also has to be the one of the Envoy's pod.
type consulAuthorizer struct {
	consul *consul.Authorizer
	pods   *podCheck // may be nil
	client *consul.Client
	// kubernetes is what pods asks; nil without pods.
	kubernetes *kubeapi.Client
}

// close ends all logins at Consul, Usher's own last.
func (a consulAuthorizer) close() {
	a.consul.Close()
	a.client.LogOut()
}

// Authorize implements xds.Authorizer.
func (a consulAuthorizer) Authorize(ctx context.Context, c xds.Caller, n xds.Node) (expiry time.Time, err error) {
	id, err := controlplane.GatewayOf(n)
	if err != nil {
		return time.Time{}, err
	}
	token, bearer := string(c.Credential.Token), string(c.Credential.Bearer)
	err = a.consul.Authorize(ctx, consul.Caller{Token: token, Bearer: bearer, Address: c.Network.String(), Again: c.Again}, id)
	if err == nil && bearer != "" && a.pods != nil {
		err = a.pods.authorize(ctx, bearer, id, n.ID)
	}
	if err != nil {
		return time.Time{}, refusal(err, id, c.Credential)
	}
	return consul.BearerExpiry(bearer), nil
}

// refusal returns the gRPC status for an error of the authorizer. Any other error is no answer.
func refusal(err error, id gateway.ID, of xds.Credential) error {
	const bearer = "the stream's bearer token"
	switch {
	case errors.Is(err, consul.ErrBearerUnused):
		return status.Error(codes.Unauthenticated,
			bearer+" is of no use here: usher serve runs without --envoy-login-auth-method; set the flag, or send x-consul-token")
	case errors.Is(err, consul.ErrBearerInvalid):
		return status.Error(codes.Unauthenticated, bearer+" is no JWT; send the token of the pod's service account")
	case errors.Is(err, consul.ErrBearerExpired):
		return status.Error(codes.Unauthenticated, bearer+" has expired; send a new one, and compare the clocks if it is new")
	case errors.Is(err, consul.ErrLoginRefused):
		return status.Errorf(codes.Unauthenticated,
			bearer+": %v; send the token of a service account that has a binding rule for the gateway %q", err, id)
	case errors.Is(err, tokenreview.ErrRefused), errors.Is(err, errOtherPod):
		return status.Errorf(codes.PermissionDenied, bearer+" is not the one of the Envoy's pod: %v", err)
	case errors.Is(err, consul.ErrDenied) && of.Bearer != "":
		return status.Errorf(codes.PermissionDenied, "the service account of "+bearer+" needs service:write on the gateway %q", id)
	case of.Token == "" && errors.Is(err, consul.ErrUnknownToken), of.Token == "" && errors.Is(err, consul.ErrDenied):
		return status.Errorf(codes.PermissionDenied,
			"the stream came without x-consul-token; send a token with service:write on the gateway %q", id)
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
func (allowAll) Authorize(context.Context, xds.Caller, xds.Node) (time.Time, error) {
	return time.Time{}, nil
}

// keyPair returns the certificate of the xDS server and of the dataplane server; nil for plain text.
func (o serveOptions) keyPair(log *slog.Logger, metrics prometheus.Registerer) (*xds.KeyPair, error) {
	switch {
	case (o.tlsCert == "") != (o.tlsKey == ""):
		return nil, errors.New("--tls-cert and --tls-key belong together: set both, or neither")
	case o.tlsCert != "":
		pair, err := xds.NewKeyPair(o.tlsCert, o.tlsKey, log)
		if err == nil {
			pair.Register(metrics)
		}
		return pair, err
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
