package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/usherproxy/usher/internal/bootstrap"
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/loadbalancer"
	"github.com/usherproxy/usher/xds"
)

// serveOptions are the flags of usher serve. Consul's environment variables replace an empty address of Consul.
type serveOptions struct {
	consulHTTPAddrs, consulGRPCAddrs     []string
	xdsAddr, dataplaneAddr               string
	admin                                adminOptions
	configFile, configDir                string
	kubeconfig, balancerRecord           string
	balancerGrace                        time.Duration
	tlsCert, tlsKey                      string
	insecurePlaintext                    bool
	reauthorize, drainTime, staleIfError time.Duration
	dataplaneDrainTime                   time.Duration
	envoyLoginAuthMethod                 string
	tokenReview                          bool
	loginAuthMethod, loginTokenFile      string
	webhook                              webhookOptions
	connectionReports                    bool
	reportKeyFile, reportKeySecret       string
	stateDir, stateKeyFile               string
	limits                               xds.Limits
	gateways                             []string
	watched                              []gateway.ID // from gateways
	maxGateways                          int
	logLevel, logFormat                  string

	logOut  io.Writer
	signals signals
	flags   map[string]flagValue // all of them, to be shown
}

func serveCommand() *cobra.Command {
	o := serveOptions{logOut: os.Stderr}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve Envoys of ingress gateways over xDS.",
		Long: "Serve watches Consul (or, with --config-dir, files) and serves each Envoy the resources of its ingress\n" +
			"gateway. Consul's environment variables (CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_CACERT and the others)\n" +
			"have the same meaning as for Consul's own commands. A flag wins over its variable.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			received, stop := notify()
			defer stop()
			o.signals, o.flags = received, flagValues(cmd.Flags())
			return serve(cmd.Context(), o)
		},
	}
	o.register(cmd)
	return cmd
}

// register adds all flags of usher serve.
func (o *serveOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	o.registerSource(f)
	f.StringVar(&o.xdsAddr, "xds-addr", "127.0.0.1:18000", "Address that Envoys connect to: host:port or unix:///path.")
	f.StringVar(&o.dataplaneAddr, "dataplane-addr", "",
		"Address (host:port) that consul-dataplane connects to instead of Consul's gRPC port. "+
			"Usher answers for ingress gateways, and passes everything else on to Consul. "+
			"consul-dataplane trusts Consul's CA, so --tls-cert has to be signed by it, unless -ca-certs of consul-dataplane names another CA. Default: no such port.")
	f.DurationVar(&o.dataplaneDrainTime, "dataplane-drain-time", bootstrap.DefaultDrainTime,
		"How long the Envoy of a gateway that connects by --dataplane-addr goes on to serve when its pod ends. "+
			"0 leaves it with consul-dataplane's own bootstrap, with which it ends at once.")
	f.StringVar(&o.admin.addr, "admin-addr", "127.0.0.1:18001", "Address of /healthz, /readyz, /status, /metrics, /envoys, /debug, and gRPC health and CSDS.")
	f.BoolVar(&o.admin.remoteDebug, "admin-remote-debug", false, "Answer /debug and CSDS on --admin-addr also to callers that are not on loopback. "+
		"They have profiles and the whole configuration of gateways, without keys and tokens.")
	f.StringVar(&o.balancerRecord, "balancer-record", "",
		"ConfigMap (NAMESPACE/NAME, must exist) that stores when each load balancer's setting changed, "+
			"so that a restarted Usher ends the grace period at the same time as the others.")
	f.StringVar(&o.tlsCert, "tls-cert", "", "PEM file with the certificate of the ports for Envoys and for consul-dataplane."+reloaded)
	f.StringVar(&o.tlsKey, "tls-key", "", "PEM file with the key of --tls-cert."+reloaded)
	f.BoolVar(&o.insecurePlaintext, "insecure-plaintext", false,
		"Allow an --xds-addr and a --dataplane-addr beyond loopback without TLS. Private keys then cross the network unencrypted: use it only in a network that others cannot read.")
	f.DurationVar(&o.reauthorize, "reauthorize-interval", 30*time.Second,
		"How often the token of a connected Envoy is checked again: 1s or more.")
	f.DurationVar(&o.drainTime, "drain-time", 5*time.Second,
		"How long a graceful shutdown (SIGTERM, SIGINT) takes to end the streams, from 0s to 10m. "+
			"They end one after the other, so that not all Envoys reconnect at once. Fewer than 50 streams end sooner.")
	f.DurationVar(&o.staleIfError, "authorization-stale-if-error", 24*time.Hour,
		"How long Envoys that Consul has authorized may stay connected and reconnect "+
			"while Consul does not answer, with --state-dir also after a restart of Usher. 0s: not at all.")
	f.StringVar(&o.envoyLoginAuthMethod, "envoy-login-auth-method", "",
		"Auth method of Consul at which the bearer tokens of Envoys are exchanged for Consul tokens, such as "+
			"consul-k8s-component-auth-method. Default: bearer tokens are refused.")
	f.BoolVar(&o.tokenReview, "token-review", false,
		"Also check each bearer token with Kubernetes (TokenReview): it has to be the one of the pod whose name is the gateway's "+
			"service ID. Usher's service account then needs the right to create tokenreviews.")
	o.webhook.register(f)
	f.BoolVar(&o.connectionReports, "connection-reports", true,
		"Let Envoys report to Usher which connections begin with a PROXY header. The mode auto goes by that, too, and problems and metrics show it.")
	f.StringVar(&o.reportKeySecret, "connection-report-key-secret", "",
		"Secret of Kubernetes (NAMESPACE/NAME, must exist) with the key by which Usher recognizes these reports. "+
			"If its data has no \"key\", Usher writes a random one. Give all replicas the same Secret.")
	f.StringVar(&o.reportKeyFile, "connection-report-key-file", "",
		"File with such a key, 16 bytes or more, instead of a Secret. Give all replicas the same one, and keep it: another one changes all listeners. "+
			"Default: CONSUL_HTTP_TOKEN. With CONSUL_HTTP_TOKEN_FILE or --login-auth-method there is no default, and Envoys report nothing without one of these flags.")
	f.StringVar(&o.stateDir, "state-dir", "",
		"Directory (mode 0700, for this Usher only) in which Usher saves the last valid configuration of each gateway. "+
			"An Usher that starts while Consul does not answer serves that. In Kubernetes, it also has the modes of listeners and the key of "+
			"--connection-report-key-secret, for a start while the API server does not answer. Default: nothing is saved.")
	f.StringVar(&o.stateKeyFile, "state-key-file", "",
		"File with a secret of 16 bytes or more that encrypts --state-dir. Default: USHER_STATE_KEY. "+
			"Without a secret, private keys are not saved, and an Usher that starts without Consul serves only Envoys that run.")
	f.StringArrayVar(&o.gateways, "gateway", nil, "Gateway (NAME, or PARTITION/NAMESPACE/NAME) that Usher watches without an Envoy, too. "+
		"Its first Envoy does not wait, and the log says if none connects. You can give several. Default: each gateway as long as it has an Envoy.")
	limitFlags(f, &o.limits, &o.maxGateways)
	f.StringVar(&o.logLevel, "log-level", "info", "Lowest level that is logged: debug, info, warn or error.")
	f.StringVar(&o.logFormat, "log-format", "text", "Format of the log: text or json.")
}

// registerSource adds the flags that say where configuration comes from.
func (o *serveOptions) registerSource(f *pflag.FlagSet) {
	f.StringSliceVar(&o.consulHTTPAddrs, "consul-http-addr", nil,
		"Address of Consul's HTTP API: host:port, http(s)://host:port or unix:///path. "+
			"With several (a list with commas, or the flag several times), Usher uses the first, and the next one that answers when that in use does not. "+
			"Default: CONSUL_HTTP_ADDR, else 127.0.0.1:8500.")
	f.StringSliceVar(&o.consulGRPCAddrs, "consul-grpc-addr", nil,
		"Address of Consul's gRPC API, which signs the certificates for TLS listeners. It has the same forms. "+
			"Several belong to those of the HTTP API, in their order. "+
			"Default: CONSUL_GRPC_ADDR, else the host of the HTTP API that is in use, with the port that the agent reports.")
	f.StringVar(&o.configFile, "config", "", "File with Usher's settings for all gateways or for single ones."+reloaded)
	f.StringVar(&o.configDir, "config-dir", "",
		"Directory with config entries and service definitions, instead of Consul. "+
			"Without Consul, no token is checked: every caller gets the configuration."+reloaded)
	f.StringVar(&o.kubeconfig, "kubeconfig", "",
		"Kubeconfig of the cluster that has the gateways' Services (mode auto). "+
			"Default: the cluster that Usher runs in. Without a cluster, mode auto is off.")
	f.DurationVar(&o.balancerGrace, "balancer-grace", loadbalancer.DefaultGrace,
		"How long a load balancer may take to apply a change of its Service. "+
			"Until then, its listeners accept connections with and without a PROXY header. Give all replicas the same value.")
	f.StringVar(&o.loginAuthMethod, "login-auth-method", "",
		"Auth method of Consul at which Usher logs in for its own token, instead of CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE.")
	f.StringVar(&o.loginTokenFile, "login-bearer-token-file", serviceAccountTokenFile,
		"File with the bearer token for --login-auth-method. Usher reads it at each login.")
}

// checkSource returns an error if the value of a flag of registerSource is out of bounds.
func (o *serveOptions) checkSource() error {
	if o.balancerGrace < time.Second {
		return fmt.Errorf("--balancer-grace %v: it must be at least 1s, because every load balancer needs time to follow its Service; use a duration such as 10m", o.balancerGrace)
	}
	return nil
}

// serviceAccountTokenFile is where Kubernetes puts the token of a pod's service account.
const serviceAccountTokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// reloaded is a part of the help for files.
const reloaded = " Changes are picked up without a restart."

// check returns an error if the value of a flag is out of bounds.
func (o *serveOptions) check() error {
	if err := o.checkSource(); err != nil {
		return err
	}
	switch {
	case o.reauthorize < time.Second:
		return fmt.Errorf("--reauthorize-interval %v: it must be at least 1s; use a duration such as 30s", o.reauthorize)
	case o.staleIfError < 0:
		return fmt.Errorf("--authorization-stale-if-error %v: it must not be negative; use a duration such as 24h", o.staleIfError)
	case o.drainTime < 0 || o.drainTime > 10*time.Minute:
		return fmt.Errorf("--drain-time %v: it must be from 0s to 10m; use a duration such as 5s", o.drainTime)
	case o.dataplaneDrainTime < 0 || o.dataplaneDrainTime > maxDrainTime:
		return fmt.Errorf("--dataplane-drain-time %v: it must be from 0s to %v; use a duration such as 8s", o.dataplaneDrainTime, maxDrainTime)
	case o.tokenReview && o.envoyLoginAuthMethod == "":
		return errors.New("--token-review: it checks the bearer tokens of Envoys, which Usher refuses without --envoy-login-auth-method; set that, too")
	case o.reportKeyFile != "" && o.reportKeySecret != "":
		return errors.New("--connection-report-key-secret and --connection-report-key-file: there is one key; remove one of them")
	case o.reportKeyFile+o.reportKeySecret != "" && !o.connectionReports:
		return errors.New("--connection-reports=false: Envoys report nothing; remove it, or --connection-report-key-secret and --connection-report-key-file")
	case o.stateKeyFile != "" && o.stateDir == "":
		return errors.New("--state-key-file: nothing is saved that it would encrypt; set --state-dir, too, or remove it")
	case o.stateDir != "" && o.configDir != "":
		return errors.New("--state-dir: Usher reads files instead of Consul, and they outlast a restart; remove it, or --config-dir")
	case o.configDir != "" && (o.envoyLoginAuthMethod != "" || o.loginAuthMethod != ""):
		return errors.New("--config-dir: Usher reads files instead of Consul; remove --envoy-login-auth-method and --login-auth-method, or --config-dir")
	}
	if err := o.webhook.check(o.tlsCert); err != nil {
		return err
	}
	if err := o.parseGateways(); err != nil {
		return err
	}
	return o.checkLimits()
}

// parseGateways parses --gateway.
func (o *serveOptions) parseGateways() error {
	for _, text := range o.gateways {
		id, ok := gateway.ParseID(text)
		if !ok {
			return fmt.Errorf("--gateway %q: use the NAME of a gateway, or its PARTITION/NAMESPACE/NAME", text)
		}
		if !slices.Contains(o.watched, id) {
			o.watched = append(o.watched, id)
		}
	}
	if len(o.watched) > o.maxGateways {
		return fmt.Errorf("--gateway: it names %d gateways, and Usher watches at most %d; raise --max-gateways", len(o.watched), o.maxGateways)
	}
	return nil
}

// limitFlags adds the flags that limit callers.
func limitFlags(f *pflag.FlagSet, l *xds.Limits, gateways *int) {
	const perAddress = " from one IPv4 address or one IPv6 network of 64 bits."
	d, connections := xds.DefaultLimits, connectionsFor(maxFiles())
	f.IntVar(&l.Connections, "max-connections", connections, "Maximum number of connections to the xDS port. "+
		"The default leaves a quarter of the process's file limit for everything else.")
	f.IntVar(&l.ConnectionsPerPeer, "max-connections-per-peer", min(d.ConnectionsPerPeer, max(1, connections/2)),
		"Maximum number of connections"+perAddress)
	f.IntVar(&l.Streams, "max-streams", d.Streams, "Maximum number of streams; an Envoy has one.")
	f.IntVar(&l.StreamsPerPeer, "max-streams-per-peer", d.StreamsPerPeer, "Maximum number of streams"+perAddress)
	f.IntVar(&l.StreamRate, "max-stream-rate", d.StreamRate,
		"Maximum number of new streams per second, with bursts of ten times as many. "+
			"Streams with a token that was authorized in the last ten minutes do not count.")
	f.IntVar(&l.StreamRatePerPeer, "max-stream-rate-per-peer", d.StreamRatePerPeer,
		"Maximum number of new streams per second"+perAddress)
	f.IntVar(gateways, "max-gateways", controlplane.DefaultMaxGateways, "Maximum number of gateways. Envoys of further gateways are refused.")
}

// checkLimits checks the flags of limitFlags. It keeps reservedFiles for the rest of the process.
func (o *serveOptions) checkLimits() error {
	l := o.limits
	for flag, value := range map[string]int{
		"max-connections": l.Connections, "max-connections-per-peer": l.ConnectionsPerPeer,
		"max-streams": l.Streams, "max-streams-per-peer": l.StreamsPerPeer,
		"max-stream-rate": l.StreamRate, "max-stream-rate-per-peer": l.StreamRatePerPeer,
		"max-gateways": o.maxGateways,
	} {
		if value < 1 {
			return fmt.Errorf("--%s %d: it must be at least 1", flag, value)
		}
	}
	if most := maxFiles() - reservedFiles; l.Connections > most {
		return fmt.Errorf("--max-connections %d: the process may open %d files and needs %d of them for other things; "+
			"raise the limit (ulimit -n, LimitNOFILE=), or use at most %d",
			l.Connections, maxFiles(), reservedFiles, most)
	}
	return nil
}

// reservedFiles is how many files the process needs for the connections to Consul and Kubernetes, for the admin
// port, and for the files that it watches.
const reservedFiles = 160

// connectionsFor returns the default of --max-connections for a file limit.
func connectionsFor(files int) int {
	return max(1, min(4096, files*3/4, files-reservedFiles))
}

// maxFiles returns how many files the process may open.
func maxFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<30 {
		return 1 << 30
	}
	return int(limit.Cur)
}
