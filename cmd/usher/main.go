// Command usher is an Envoy xDS control plane for Consul's ingress gateways that adds PROXY protocol and a
// trustworthy client address.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
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
	cmd, err := execute(context.Background(), rootCommand(), os.Args[1:])
	status, silent := statusOf(cmd, err)
	if !silent {
		printError(os.Stderr, err, logsJSON(cmd, os.Args[1:]))
	}
	os.Exit(status)
}

// troubleStatus is the annotation of a command whose exit status has a meaning other than 1 for an error.
const troubleStatus = "exit status for errors"

// statusOf returns the exit status for the end of a command, and whether there is nothing to print.
func statusOf(cmd *cobra.Command, err error) (status int, silent bool) {
	if e, ok := errors.AsType[exitError](err); ok {
		return e.status, e.error == nil
	}
	if err == nil {
		return 0, true
	}
	if trouble, err := strconv.Atoi(cmd.Annotations[troubleStatus]); err == nil {
		return trouble, false
	}
	return 1, false
}

// exitError is an error with an exit status. Without an error in it, the command has printed its result, which is not the
// good one.
type exitError struct {
	status int
	error
}

// errBadResult ends a command with the status 1.
var errBadResult = exitError{status: 1}

// Error implements error.
func (e exitError) Error() string {
	if e.error == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.error.Error()
}

// Unwrap returns the error without the status.
func (e exitError) Unwrap() error { return e.error }

// printError writes to stderr why the process ends, in the format of its log. If the pipe is full, it gives up after logFlushTimeout.
func printError(stderr io.Writer, err error, isJSON bool) {
	printed := make(chan struct{})
	go func() {
		defer close(printed)
		if isJSON {
			slog.New(slog.NewJSONHandler(stderr, nil)).Error("usher serve ended", "error", err.Error())
			return
		}
		fmt.Fprintln(stderr, "usher:", err)
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
		Version:       thisBuild().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(flagError)
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(
		serveCommand(),
		bootstrapCommand(),
		validateCommand(),
		renderCommand(),
		diffCommand(),
		cutoverCommand(),
		helmValuesCommand(),
		probeCommand(),
		doctorCommand(),
		statusCommand(),
		supportBundleCommand(),
		demoCommand(),
		versionCommand(),
	)
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
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return demo.Run(ctx, demo.Options{
				Envoy: envoy, Stay: stay, Out: cmd.OutOrStdout(),
				Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
				Serve: func(ctx context.Context, dir, xdsAddr string) error {
					return serve(ctx, serveOptions{
						configDir: dir, xdsAddr: xdsAddr, admin: adminOptions{addr: "127.0.0.1:0"},
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
