package main

import (
	"context"
	"fmt"

	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/usherproxy/usher/internal/configdir"
	"github.com/usherproxy/usher/internal/configfile"
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/xds"
)

// serve connects the stages, binds every port, and runs until ctx ends, a signal
// ends Usher, or one of the parts fails.
func serve(ctx context.Context, o serveOptions) error {
	// 1. What can be wrong with the flags is said before anything starts.
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), guard.Panics)
	log, flush, err := o.logger(metrics)
	if err != nil {
		return err
	}
	defer flush()
	transport, err := o.transport(log)
	if err != nil {
		return err
	}

	// 2. Facts: Consul or files, Kubernetes, and the operator's own file.
	problems := controlplane.NewProblems(log, metrics)
	facts, authorizer, err := o.newSource(log, metrics, problems)
	if err != nil {
		return err
	}
	balancers, err := o.connectKubernetes(log, metrics)
	if err != nil {
		return err
	}
	var settings *configfile.File
	if o.configFile != "" {
		if settings, err = configfile.Open(o.configFile, log); err != nil {
			return err
		}
	}

	// 3. The joiner: watches what Envoys ask for, compiles, publishes.
	plane := controlplane.New(controlplane.Options{Source: facts, Balancers: balancers, Logger: log, Metrics: controlplane.NewMetrics(metrics), Problems: problems, MaxGateways: o.maxGateways})

	// 4. The server, and its ports: a port that is taken ends the process.
	server := xds.NewServer(xds.Options{
		Source:       plane,
		Authorizer:   authorizer,
		Logger:       log,
		Credentials:  credentialsOf(transport),
		Rejections:   problems,
		Metrics:      xds.NewMetrics(metrics),
		Reauthorize:  o.reauthorize,
		MetadataKeys: controlplane.MetadataKeys,
		Limits:       o.limits,
	})
	listener, err := listen(ctx, o.xdsAddr)
	if err != nil {
		return fmt.Errorf("--xds-addr %s: %w", o.xdsAddr, err)
	}
	defer listener.Close()
	ready := &readiness{readinessChecker: withWarnings{facts, balancers}, plane: plane}
	admin, err := newAdmin(ctx, o.adminAddr, log, metrics, ready)
	if err != nil {
		return err
	}
	defer admin.stop()

	// 5. Everything runs until the first part returns.
	keeper := &signalHandler{log: log, signals: o.signals, ready: ready, server: server, drainTime: o.drainTime}
	parts := []func(context.Context) error{facts.Run, plane.Run, ready.run, keeper.run}
	if dir, ok := facts.(*configdir.Source); ok {
		keeper.reloadables = append(keeper.reloadables, reloadable{o.configDir, dir.Reload})
	}
	if settings != nil {
		plane.SetConfigFile(settings.Content())
		parts = append(parts, func(ctx context.Context) error { return settings.Run(ctx, plane.SetConfigFile) })
		keeper.reloadables = append(keeper.reloadables, reloadable{o.configFile, settings.Reload})
	}
	if transport != nil {
		parts = append(parts, transport.Run)
		keeper.reloadables = append(keeper.reloadables, reloadable{o.tlsCert, transport.Reload})
	}
	log.Info("serving", "xds", listener.Addr().String(), "admin", admin.listener.Addr().String(), "tls", transport != nil)
	var g run.Group
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, part := range parts {
		g.Add(func() error { return part(ctx) }, func(error) { cancel() })
	}
	g.Add(func() error { return server.Serve(listener) }, func(error) { server.Stop() })
	g.Add(admin.run, func(error) { admin.stop() })
	return g.Run()
}
