// Command usher is an Envoy xDS control plane for Consul's ingress gateways that adds PROXY protocol and a
// trustworthy client address.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"

	"github.com/usherproxy/usher/internal/demo"
)

func main() {
	if os.Getenv("GRPC_GO_LOG_SEVERITY_LEVEL") == "" { // otherwise gRPC logs to stderr, for debugging
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, &grpcErrors))
	}
	if err := rootCommand().ExecuteContext(context.Background()); err != nil {
		printError(err)
		os.Exit(1)
	}
}

// printError writes to stderr why the process ends. If the pipe is full, it gives up after logFlushTimeout.
func printError(err error) {
	printed := make(chan struct{})
	go func() {
		defer close(printed)
		fmt.Fprintln(os.Stderr, "usher:", err)
	}()
	select {
	case <-printed:
	case <-time.After(logFlushTimeout):
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "usher",
		Short: "An Envoy control plane for Consul ingress gateways, with PROXY protocol.",
		Long: "Usher serves the same resources as Consul's own xDS serves an ingress gateway, plus the proxy_protocol\n" +
			"listener filter, a client address that clients cannot forge, and better access logs.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(serveCommand(), bootstrapCommand(), helmValuesCommand(), demoCommand())
	return root
}

func demoCommand() *cobra.Command {
	var envoy string
	var stay bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a demo on this machine: a load balancer that sends PROXY protocol, an Envoy and a service.",
		Long: "Demo serves a gateway from files to a real Envoy, puts a small load balancer in front of it and a small service\n" +
			"behind it, and makes three requests: PROXY protocol off; off behind a balancer that sends it; strict.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return demo.Run(ctx, demo.Options{
				Envoy: envoy, Stay: stay, Out: cmd.OutOrStdout(),
				Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
				Serve: func(ctx context.Context, dir, xdsAddr string) error {
					return serve(ctx, serveOptions{
						configDir: dir, xdsAddr: xdsAddr, adminAddr: "127.0.0.1:0",
						logOut: os.Stderr, logLevel: "warn", logFormat: "text",
					})
				},
			})
		},
	}
	cmd.Flags().StringVar(&envoy, "envoy", "envoy", "The Envoy to run: a path, or a name in PATH.")
	cmd.Flags().BoolVar(&stay, "stay", false, "Keep everything running after the three requests.")
	return cmd
}
