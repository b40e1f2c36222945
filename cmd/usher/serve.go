package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/usherproxy/usher/internal/control"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/operator"
	"github.com/usherproxy/usher/kubernetes"
	"github.com/usherproxy/usher/xds"
)

// serveOptions are the flags of usher serve. Empty addresses of Consul fall
// back to Consul's own environment variables.
type serveOptions struct {
	consulHTTPAddr    string
	consulGRPCAddr    string
	xdsAddr           string
	adminAddr         string
	configFile        string
	configDir         string
	kubeconfig        string
	balancerGrace     time.Duration
	balancerRecord    string
	tlsCert           string
	tlsKey            string
	insecurePlaintext bool
	reauthorize       time.Duration
	logLevel          string
	logFormat         string

	logTo io.Writer
}

func serveCommand() *cobra.Command {
	o := serveOptions{logTo: os.Stderr}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve Envoys of ingress gateways over xDS.",
		Long: "Serve watches Consul (or, with --config-dir, files) and serves every Envoy that asks the resources of its\n" +
			"ingress gateway. Consul's environment variables (CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_CACERT and\n" +
			"the others) mean what they mean for Consul's own commands; a flag wins over its variable.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.consulHTTPAddr, "consul-http-addr", "", "Consul's HTTP API: host:port, http(s)://host:port or unix:///path. Default: CONSUL_HTTP_ADDR, else 127.0.0.1:8500.")
	f.StringVar(&o.consulGRPCAddr, "consul-grpc-addr", "", "Consul's gRPC API, which signs certificates for listeners with TLS, in the same forms. Default: CONSUL_GRPC_ADDR, else the host of the HTTP API and the port that its agent tells.")
	f.StringVar(&o.xdsAddr, "xds-addr", "127.0.0.1:18000", "Where Envoys connect: host:port or unix:///path.")
	f.StringVar(&o.adminAddr, "admin-addr", "127.0.0.1:18001", "Where /healthz, /readyz and /metrics are served.")
	f.StringVar(&o.configFile, "config", "", "File with settings for all or single gateways. It is followed.")
	f.StringVar(&o.configDir, "config-dir", "", "Directory with config entries and service definitions, instead of a Consul. It is followed.")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "File that says how to reach the Kubernetes whose Services listeners with the mode auto follow. Default: the cluster that Usher runs in, if it does.")
	f.DurationVar(&o.balancerGrace, "balancer-grace", kubernetes.DefaultGrace, "How long a load balancer is given to follow its Service; listeners take connections with and without a PROXY header meanwhile. The same for all Ushers of a gateway.")
	f.StringVar(&o.balancerRecord, "balancer-record", "", "ConfigMap (NAMESPACE/NAME) in which Ushers note since when load balancers are told what they are told, so that one that is restarted counts each grace as the others do. It has to be there.")
	f.StringVar(&o.tlsCert, "tls-cert", "", "PEM file with the certificate of the xDS server. It is followed.")
	f.StringVar(&o.tlsKey, "tls-key", "", "PEM file with the key of --tls-cert. It is followed.")
	f.BoolVar(&o.insecurePlaintext, "insecure-plaintext", false, "Allow an --xds-addr beyond loopback without TLS: private keys then cross the network in the clear.")
	f.DurationVar(&o.reauthorize, "reauthorize-interval", 30*time.Second, "How often the token of a connected Envoy is checked again.")
	f.StringVar(&o.logLevel, "log-level", "info", "Least level that is logged: debug, info, warn or error.")
	f.StringVar(&o.logFormat, "log-format", "text", "Format of the log: text or json.")
	return cmd
}

// serve wires the stages together, binds every port, and runs until ctx ends
// or one of the parts fails.
func serve(ctx context.Context, o serveOptions) error {
	// 1. What can be wrong with the flags is said before anything starts.
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), guard.Panics)
	log, flush, err := o.logger(metrics)
	if err != nil {
		return err
	}
	defer flush()
	transport, err := o.transport(log)
	if err != nil {
		return err
	}

	// 2. Facts: Consul or files, Kubernetes, and the operator's own file.
	problems := control.NewProblems(log, metrics)
	facts, authorizer, err := o.source(log, metrics, problems)
	if err != nil {
		return err
	}
	balancers, err := o.balancers(log, metrics)
	if err != nil {
		return err
	}
	var settings *operator.File
	if o.configFile != "" {
		if settings, err = operator.Open(o.configFile, log); err != nil {
			return err
		}
	}

	// 3. The joiner: watches what Envoys ask for, compiles, publishes.
	plane := control.New(control.Options{Source: facts, Balancers: balancers, Logger: log, Metrics: control.NewMetrics(metrics), Problems: problems})

	// 4. The server, and its ports: a port that is taken ends the process.
	server := xds.NewServer(xds.Options{
		Supplier:    plane,
		Authorizer:  authorizer,
		Logger:      log,
		Metrics:     xds.NewMetrics(metrics),
		Reauthorize: o.reauthorize,
	})
	listener, err := listen(ctx, o.xdsAddr)
	if err != nil {
		return fmt.Errorf("--xds-addr %s: %w", o.xdsAddr, err)
	}
	defer listener.Close()
	ready := &readiness{condition: remarked{facts, balancers}, plane: plane}
	admin, err := newAdmin(ctx, o.adminAddr, log, metrics, ready)
	if err != nil {
		return err
	}
	defer admin.stop()

	// 5. Everything runs until the first part returns.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var g run.Group
	until := func(execute func(context.Context) error) {
		g.Add(func() error { return execute(ctx) }, func(error) { cancel() })
	}
	until(func(ctx context.Context) error { <-ctx.Done(); return nil })
	until(facts.Run)
	until(plane.Run)
	until(ready.run)
	if settings != nil {
		plane.SetOperator(control.Operator(settings.Content()))
		until(func(ctx context.Context) error {
			return settings.Run(ctx, func(c operator.Content) { plane.SetOperator(control.Operator(c)) })
		})
	}
	if transport != nil {
		until(transport.Run)
	}
	grpcServer := grpc.NewServer(append(server.ServerOptions(), grpc.Creds(credentialsOf(transport)))...)
	server.Register(grpcServer)
	// Stop, not GracefulStop: Envoys keep their streams open for good.
	g.Add(func() error { return grpcServer.Serve(listener) }, func(error) { grpcServer.Stop() })
	g.Add(admin.run, func(error) { admin.stop() })
	log.Info("serving", "xds", listener.Addr().String(), "admin", admin.listener.Addr().String(), "tls", transport != nil)
	return g.Run()
}
