package main

import (
	"context"
	"log/slog"

	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/configdir"
	"github.com/usherproxy/usher/internal/configfile"
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/xds"
)

// serve connects the stages, binds every port, and runs until ctx ends, a signal ends Usher, or one of the parts fails.
func serve(ctx context.Context, o serveOptions) error {
	// 1. Errors in the flags come before anything starts.
	metrics := newMetrics()
	log, recent, flush, err := o.logger(metrics)
	if err != nil {
		return err
	}
	defer flush()
	transport, err := o.newTransport(log, metrics)
	if err != nil {
		return err
	}
	defer transport.handshakes.Stop()

	// 2. The sources: Consul or files, Kubernetes, what Envoys report, and the config file.
	problems := controlplane.NewProblems(log, metrics)
	state, err := o.openStateDir(log)
	if err != nil {
		return err
	}
	if state != nil {
		defer state.Close()
	}
	source, authorizer, client, err := o.newSource(log, metrics, problems, state)
	if err != nil {
		return err
	}
	kubernetes, err := o.newKubernetesSources(ctx, log, metrics, problems, memoryOf(state))
	if err != nil {
		return err
	}
	reports, balancers := kubernetes.reports, kubernetes.balancers
	configFile, err := o.openConfigFile(log)
	if err != nil {
		return err
	}

	// 3. The control plane: it watches gateways, compiles and publishes.
	plane := controlplane.New(controlplane.Options{
		Source: source, Balancers: balancers, Logger: log, Problems: problems, Metrics: controlplane.NewMetrics(metrics),
		Gateways: o.watched, Connections: reports.store, MaxGateways: o.maxGateways,
	})
	plane.SetReportKey(reports.key)

	// 4. The servers and their ports: if a port is in use, the process ends.
	options := xds.Options{
		Source: plane, Authorizer: authorizer, Logger: log, Observer: observer{problems, plane}, Metrics: xds.NewMetrics(metrics),
		Reauthorize: o.reauthorize, MetadataKeys: controlplane.MetadataKeys, Limits: o.limits,
		Reports: reports.taker(), Credentials: transport.credentials("xds"),
	}
	servers, err := newServers(ctx, o, options, transport)
	if err != nil {
		return err
	}
	defer servers.close()
	if err := servers.listenDataplane(ctx, o, client, options, metrics); err != nil {
		return err
	}
	ready := &readiness{source: source, balancers: balancers, plane: plane, problems: problems}
	if w, ok := source.(*consul.Watcher); ok {
		if a, ok := authorizer.(consulAuthorizer); ok {
			ready.saved = func() bool { return w.HasSaved() && a.consul.RemembersAny() }
		}
	}
	admin, err := newAdmin(ctx, o.admin, log, metrics, ready)
	if err != nil {
		return err
	}
	defer admin.stop()
	admin.addPages(adminSources{plane, problems, servers, ready, recent, o})

	// 5. Everything runs until the first part returns.
	limit, limitFrom, limitErr := limitMemory()
	watch := &memoryWatch{limit: limit, live: liveMemory, report: func(found []problem.Problem) { problems.Report("memory", found) }}
	handler := &signalHandler{servers: servers, log: log, signals: o.signals, ready: ready, drainTime: o.drainTime}
	parts := []func(context.Context) error{source.Run, plane.Run, ready.run, handler.run, watch.run, o.startChecks(log, client, transport, o.describeMemory(limit, limitFrom, limitErr)).run}
	if dir, ok := source.(*configdir.Source); ok {
		handler.reloadables = append(handler.reloadables, reloadable{o.configDir, dir.Reload})
	}
	if configFile != nil {
		plane.SetConfigFile(configFile.Content())
		parts = append(parts, func(ctx context.Context) error { return configFile.Run(ctx, plane.SetConfigFile) })
		handler.reloadables = append(handler.reloadables, reloadable{o.configFile, configFile.Reload})
	}
	if reports.secret != nil {
		parts = append(parts, func(ctx context.Context) error { return reports.run(ctx, plane) })
	}
	if keys := transport.keys; keys != nil {
		parts = append(parts, keys.Run, func(ctx context.Context) error { return keys.ReportProblems(ctx, problems.ReportCertificate) })
		handler.reloadables = append(handler.reloadables, reloadable{o.tlsCert, keys.Reload})
	}
	followFiles := func(client *kubeapi.Client, source string) {
		if client != nil {
			parts = append(parts, func(ctx context.Context) error {
				return client.Run(ctx, log, func(found []problem.Problem) { problems.Report(source, found) })
			})
		}
	}
	followFiles(kubernetes.client, "the files for Kubernetes")
	if a, ok := authorizer.(consulAuthorizer); ok {
		followFiles(a.kubernetes, "the files for --token-review")
		parts = append(parts, a.consul.Run)
		defer a.close() //nolint:contextcheck // after everything that uses the logins, when ctx has ended
	}
	log.Info("serving", append(servers.addresses(), "admin", admin.address(), "tls", transport.keys != nil, "version", thisBuild().Version)...)
	g := groupOf(ctx, parts)
	g.Add(servers.serve, func(error) { servers.stop() })
	g.Add(admin.run, func(error) { admin.stop() })
	return g.Run()
}

// observer receives what the xDS server observes.
type observer struct {
	*controlplane.Problems
	*controlplane.Plane
}

// newMetrics returns the metrics of the process.
func newMetrics() *prometheus.Registry {
	metrics := prometheus.NewRegistry()
	process := collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})
	metrics.MustRegister(collectors.NewGoCollector(), process, guard.Panics, thisBuild().metric())
	return metrics
}

// openConfigFile returns the config file; nil if there is none.
func (o serveOptions) openConfigFile(log *slog.Logger) (*configfile.File, error) {
	if o.configFile == "" {
		return nil, nil
	}
	return configfile.Open(o.configFile, log)
}

// groupOf returns a group of the parts. When one part of the group returns, it ends the others.
func groupOf(ctx context.Context, parts []func(context.Context) error) *run.Group {
	var g run.Group
	for _, part := range parts {
		ctx, cancel := context.WithCancel(ctx)
		g.Add(func() error { return part(ctx) }, func(error) { cancel() })
	}
	return &g
}
