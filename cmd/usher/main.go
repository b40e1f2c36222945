// Command usher is an Envoy xDS control plane for Consul's ingress gateways
// that adds PROXY protocol and a trustworthy client address.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"
)

func main() {
	if os.Getenv("GRPC_GO_LOG_SEVERITY_LEVEL") == "" { // otherwise the operator debugs gRPC
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, &grpcErrors))
	}
	if err := rootCommand().ExecuteContext(context.Background()); err != nil {
		printError(err)
		os.Exit(1)
	}
}

// complain writes to stderr why the process ends. If the pipe is full, it gives up
// after lastFlush.
func printError(err error) {
	said := make(chan struct{})
	go func() {
		defer close(said)
		fmt.Fprintln(os.Stderr, "usher:", err)
	}()
	select {
	case <-said:
	case <-time.After(logFlushTimeout):
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
