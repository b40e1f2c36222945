package main

import (
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
		Long: "Bootstrap prints what Envoy starts with to become an instance of a gateway: envoy -c <(usher bootstrap …).\n" +
			"The gateway has to be registered in Consul. A bootstrap of \"consul connect envoy -gateway=ingress\" works too.",
		Args: cobra.NoArgs,
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
	f.StringVar(&o.NodeName, "node-name", "", "Consul node of this instance; needed when instances on several nodes have one service ID and cannot be told apart by address.")
	f.StringVar(&o.Namespace, "namespace", "", "Namespace of the gateway (Consul Enterprise).")
	f.StringVar(&o.Partition, "partition", "", "Partition of the gateway (Consul Enterprise).")
	f.StringVar(&o.XDSAddr, "xds-addr", "127.0.0.1:18000", "Where Usher is: host:port, https://host:port or unix:///path.")
	f.StringVar(&caFile, "ca-file", "", "PEM file with the certificates that Usher's own is verified with; for https.")
	f.StringVar(&o.ServerName, "tls-server-name", "", "Name that Usher's certificate must have. Default: the host of --xds-addr.")
	f.StringVar(&tokenFile, "token-file", "", "File with the ACL token that Envoy shows. Default: CONSUL_HTTP_TOKEN_FILE, else the token in CONSUL_HTTP_TOKEN.")
	f.StringVar(&o.AdminAddr, "admin-addr", bootstrap.DefaultAdminAddr, "Address of Envoy's admin interface.")
	f.StringVar(&o.ReadyAddr, "ready-addr", "", "Address of a listener that answers /ready, for health checks. Default: none.")
	f.BoolVar(&o.SotW, "state-of-the-world", false, "Ask for the state-of-the-world form of the protocol, not the incremental one.")
	_ = cmd.MarkFlagRequired("gateway")
	return cmd
}

// token gives the ACL token that Consul's own commands would use.
func readToken(file string) (gateway.Secret, error) {
	if file == "" {
		file = os.Getenv("CONSUL_HTTP_TOKEN_FILE")
	}
	if file == "" {
		return gateway.Secret(os.Getenv("CONSUL_HTTP_TOKEN")), nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	return gateway.Secret(strings.TrimSpace(string(text))), nil
}
