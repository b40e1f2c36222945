package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/usherproxy/usher/internal/demo"
)

func demoCommand() *cobra.Command {
	var envoy string
	var stay bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the lab on this machine: a balancer that sends PROXY protocol, an Envoy, a service.",
		Long: "Demo serves a gateway from files to a real Envoy, puts a small load balancer in front of it and a small service\n" +
			"behind it, and makes three requests: PROXY protocol off; off behind a balancer that sends it; strict.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return demo.Run(ctx, demo.Options{
				Envoy:  envoy,
				Stay:   stay,
				Out:    cmd.OutOrStdout(),
				Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
				Serve: func(ctx context.Context, dir, xdsAddr string) error {
					return serve(ctx, serveOptions{
						configDir: dir,
						xdsAddr:   xdsAddr,
						adminAddr: "127.0.0.1:0",
						logOut:    os.Stderr,
						logLevel:  "warn",
						logFormat: "text",
					})
				},
			})
		},
	}
	cmd.Flags().StringVar(&envoy, "envoy", "envoy", "The Envoy to run: a path, or a name in PATH.")
	cmd.Flags().BoolVar(&stay, "stay", false, "Keep everything running after the three requests.")
	return cmd
}
