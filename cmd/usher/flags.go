package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/usherproxy/usher/internal/loadbalancer"
	"github.com/usherproxy/usher/xds"
)

// serveOptions are the flags of usher serve. If an address of Consul is empty,
// Consul's environment variables apply.
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
	drainTime         time.Duration
	staleIfError      time.Duration
	limits            xds.Limits
	maxGateways       int
	logLevel          string
	logFormat         string

	logOut  io.Writer
	signals signals
}

func serveCommand() *cobra.Command {
	o := serveOptions{logOut: os.Stderr}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve Envoys of ingress gateways over xDS.",
		Long: "Serve watches Consul (or, with --config-dir, files) and serves every Envoy that asks the resources of its\n" +
			"ingress gateway. Consul's environment variables (CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_CACERT and\n" +
			"the others) mean what they mean for Consul's own commands; a flag wins over its variable.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			received, stop := notify()
			defer stop()
			o.signals = received
			return serve(cmd.Context(), o)
		},
	}
	o.register(cmd)
	return cmd
}

// register adds all flags of usher serve.
func (o *serveOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.consulHTTPAddr, "consul-http-addr", "", "Consul's HTTP API: host:port, http(s)://host:port or unix:///path. Default: CONSUL_HTTP_ADDR, else 127.0.0.1:8500.")
	f.StringVar(&o.consulGRPCAddr, "consul-grpc-addr", "", "Consul's gRPC API, which signs certificates for listeners with TLS, in the same forms. Default: CONSUL_GRPC_ADDR, else the host of the HTTP API and the port that its agent tells.")
	f.StringVar(&o.xdsAddr, "xds-addr", "127.0.0.1:18000", "Where Envoys connect: host:port or unix:///path.")
	f.StringVar(&o.adminAddr, "admin-addr", "127.0.0.1:18001", "Where /healthz, /readyz and /metrics are served.")
	f.StringVar(&o.configFile, "config", "", "File with settings for all or single gateways. It is followed.")
	f.StringVar(&o.configDir, "config-dir", "", "Directory with config entries and service definitions, instead of a Consul. It is followed.")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "File that says how to reach the Kubernetes whose Services listeners with the mode auto follow. Default: the cluster that Usher runs in, if it does.")
	f.DurationVar(&o.balancerGrace, "balancer-grace", loadbalancer.DefaultGrace, "How long a load balancer is given to follow its Service; listeners take connections with and without a PROXY header meanwhile. The same for all Ushers of a gateway.")
	f.StringVar(&o.balancerRecord, "balancer-record", "", "ConfigMap (NAMESPACE/NAME) in which Ushers note since when load balancers are told what they are told, so that one that is restarted counts each grace as the others do. It has to be there.")
	f.StringVar(&o.tlsCert, "tls-cert", "", "PEM file with the certificate of the xDS server. It is followed.")
	f.StringVar(&o.tlsKey, "tls-key", "", "PEM file with the key of --tls-cert. It is followed.")
	f.BoolVar(&o.insecurePlaintext, "insecure-plaintext", false, "Allow an --xds-addr beyond loopback without TLS: private keys then cross the network in the clear.")
	f.DurationVar(&o.reauthorize, "reauthorize-interval", 30*time.Second, "How often the token of a connected Envoy is checked again: 1s or more.")
	f.DurationVar(&o.drainTime, "drain-time", 5*time.Second, "Over which time SIGTERM and SIGINT end the streams of Envoys, one after the other, so that they do not all connect elsewhere at once: 0s to 10m. Fewer than 50 streams end sooner.")
	f.DurationVar(&o.staleIfError, "authorization-stale-if-error", 24*time.Hour, "How long Envoys that Consul has allowed may stay connected and come back while Consul cannot be asked; 0s means not at all.")
	limitFlags(f, &o.limits, &o.maxGateways)
	f.StringVar(&o.logLevel, "log-level", "info", "Least level that is logged: debug, info, warn or error.")
	f.StringVar(&o.logFormat, "log-format", "text", "Format of the log: text or json.")
}

// check returns an error if the value of a flag is out of bounds.
func (o *serveOptions) check() error {
	const most = 10 * time.Minute
	switch {
	case o.balancerGrace < 0:
		return fmt.Errorf("--balancer-grace: it is a time from 0 on, such as 10m; %v is less", o.balancerGrace)
	case o.reauthorize < time.Second:
		return fmt.Errorf("--reauthorize-interval: it is a time from 1s on, such as 30s; %v is less", o.reauthorize)
	case o.staleIfError < 0:
		return fmt.Errorf("--authorization-stale-if-error: it is a time from 0s on, such as 24h; %v is less", o.staleIfError)
	case o.drainTime < 0 || o.drainTime > most:
		return fmt.Errorf("--drain-time: it is a time from 0s to 10m, such as 5s; %v is not", o.drainTime)
	}
	return o.checkLimits()
}
