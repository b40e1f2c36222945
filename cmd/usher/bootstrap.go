package main

import (
	"cmp"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usherproxy/usher/internal/bootstrap"
	"github.com/usherproxy/usher/internal/gateway"
)

func bootstrapCommand() *cobra.Command {
	var o bootstrap.Options
	var caFile, tokenFile string
	cmd := &cobra.Command{
		Use:   "bootstrap --gateway NAME",
		Short: "Print an Envoy bootstrap for a gateway, in JSON.",
		Long: "Bootstrap prints the bootstrap of an Envoy that is an instance of a gateway: envoy -c <(usher bootstrap …).\n" +
			"The instance has to be registered in Consul. A bootstrap of \"consul connect envoy -gateway=ingress\" works, too.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Token, err = readToken(tokenFile); err != nil {
				return err
			}
			if caFile != "" {
				pem, err := os.ReadFile(caFile)
				if err != nil {
					return fmt.Errorf("--ca-file: %w", err)
				}
				o.CACert = string(pem)
			}
			return bootstrap.Write(cmd.OutOrStdout(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Gateway, "gateway", "", "Service name of the gateway in Consul.")
	f.StringVar(&o.ServiceID, "service-id", "", "Service ID of this instance. Default: the gateway's name.")
	f.StringVar(&o.NodeName, "node-name", "", "Consul node of this instance. "+
		"Required if instances on several nodes have the same service ID and their addresses do not differ.")
	f.StringVar(&o.Namespace, "namespace", "", "Namespace of the gateway (Consul Enterprise).")
	f.StringVar(&o.Partition, "partition", "", "Partition of the gateway (Consul Enterprise).")
	f.StringVar(&o.Datacenter, "datacenter", "", "Datacenter of the gateway, for the label consul_source_datacenter of its metrics. "+
		"Default: no such label.")
	f.StringVar(&o.XDSAddr, "xds-addr", "127.0.0.1:18000",
		"Address of Usher's xDS server: host:port, https://host:port or unix:///path.")
	f.StringVar(&caFile, "ca-file", "", "PEM file with the CA certificates that verify Usher's certificate; for https.")
	f.StringVar(&o.ServerName, "tls-server-name", "", "Name that Usher's certificate must have. Default: the host of --xds-addr.")
	f.StringVar(&tokenFile, "token-file", "", "File with the ACL token that Envoy sends to Usher. "+
		"Default: CONSUL_HTTP_TOKEN_FILE, else the token in CONSUL_HTTP_TOKEN.")
	f.StringVar(&o.AdminAddr, "admin-addr", bootstrap.DefaultAdminAddr, "Address of Envoy's admin interface.")
	f.StringVar(&o.ReadyAddr, "ready-addr", "", "Address of a listener that answers /ready, for health checks. Default: no such listener.")
	f.BoolVar(&o.OmitDeprecatedTags, "omit-deprecated-tags", false, "Leave out the labels of metrics that have names from before Consul 1.9, "+
		"such as consul_service beside consul_destination_service. Envoy starts faster without them.")
	f.BoolVar(&o.EagerStats, "eager-stats", false, "Create the metrics of requests to a service with the service. "+
		"Otherwise, Envoy starts faster and creates them with the first request, which needs Envoy 1.27 or later.")
	f.BoolVar(&o.SotW, "state-of-the-world", false, "Use the state-of-the-world protocol instead of the incremental one.")
	_ = cmd.MarkFlagRequired("gateway")
	return cmd
}

// readToken returns the ACL token that Consul's own commands would use.
func readToken(file string) (gateway.Secret, error) {
	if file = cmp.Or(file, os.Getenv("CONSUL_HTTP_TOKEN_FILE")); file == "" {
		return gateway.Secret(os.Getenv("CONSUL_HTTP_TOKEN")), nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("ACL token (--token-file, CONSUL_HTTP_TOKEN_FILE): %w", err)
	}
	return gateway.Secret(strings.TrimSpace(string(text))), nil
}
