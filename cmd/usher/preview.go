package main

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// previewer runs the stages of usher serve up to the resource sets, and has no servers.
type previewer struct {
	source    configSource
	balancers balancerSource // nil outside Kubernetes
	file      settings.File
	envoy     gateway.EnvoyVersion
	// unknownBlocks receives the problems of blocks in the config file that name no gateway of the source. It may be nil.
	unknownBlocks func([]problem.Problem)
}

// run previews the gateways until done reports true for a preview and the blocks of the config file are checked, or ctx
// ends.
func (p previewer) run(ctx context.Context, ids []gateway.ID, done func(controlplane.Preview) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log, metrics := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	previews := make(chan controlplane.Preview)
	plane := controlplane.New(controlplane.Options{
		Source: p.source, Balancers: p.balancers, Logger: log, Gateways: ids,
		Problems: controlplane.NewProblems(log, metrics), Metrics: controlplane.NewMetrics(metrics),
		Preview: &controlplane.PreviewOptions{Envoy: p.envoy, Put: func(next controlplane.Preview) {
			select {
			case previews <- next:
			case <-ctx.Done():
			}
		}},
	})
	plane.SetConfigFile(p.file)
	names := make(chan []string, 1) // the first that are known
	parts := []func(context.Context) error{p.source.Run, plane.Run}
	unchecked := p.unknownBlocks != nil && len(p.file.Gateways) > 0
	if unchecked {
		parts = append(parts, func(ctx context.Context) error {
			return p.source.WatchNames(ctx, func(known []string) {
				select {
				case names <- known:
				default:
				}
			})
		})
	}
	judge := func(ctx context.Context) error {
		complete := false
		for !complete || unchecked {
			select {
			case next := <-previews:
				complete = done(next)
			case known := <-names:
				if unchecked = false; known != nil {
					p.unknownBlocks(controlplane.UnknownGateways(p.file, known))
				}
			case <-ctx.Done():
				return nil
			}
		}
		return nil
	}
	return groupOf(ctx, append(parts, judge)).Run()
}
