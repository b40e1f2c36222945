// Command usher is an Envoy xDS control plane for Consul's ingress gateways
// that adds PROXY protocol and a trustworthy client address.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "usher:", err)
		os.Exit(1)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "usher",
		Short: "An Envoy control plane for Consul ingress gateways that speaks PROXY protocol.",
		Long: "Usher serves Envoy what Consul's own xDS serves an ingress gateway, plus the proxy_protocol\n" +
			"listener filter, a client address that clients cannot forge, and better access logs.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(serveCommand(), bootstrapCommand(), demoCommand())
	return root
}
