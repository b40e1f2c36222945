package main

import (
	"context"
	"log/slog"
	"slices"

	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

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
	ready := newReadiness(source, authorizer, balancers, plane, problems)
	admin, err := newAdmin(ctx, o.admin, log, metrics, ready)
	if err != nil {
		return err
	}
	defer admin.stop()
	admin.addPages(adminSources{plane, problems, servers, ready, recent, o})

	// 5. Everything runs until the first part returns.
	memory, memoryState := o.newMemoryWatch(problems)
	handler := &signalHandler{servers: servers, log: log, signals: o.signals, ready: ready, drainTime: o.drainTime}
	parts := []func(context.Context) error{source.Run, plane.Run, ready.run, handler.run, memory.run, o.startChecks(log, client, transport, memoryState).run}
	if reports.secret != nil {
		parts = append(parts, func(ctx context.Context) error { return reports.run(ctx, plane) })
	}
	files := followedFiles{config: configFile, keys: transport.keys, kubernetes: kubernetes.client}
	files.dir, _ = source.(*configdir.Source)
	if a, ok := authorizer.(consulAuthorizer); ok {
		files.tokenReview = a.kubernetes
		parts = append(parts, a.consul.Run)
		defer a.close() //nolint:contextcheck // after everything that uses the logins, when ctx has ended
	}
	following, reloadables := o.follow(files, log, plane, problems)
	handler.reloadables = reloadables
	log.Info("serving", slices.Concat(servers.addresses(), []any{"admin", admin.address(), "tls", transport.keys != nil}, thisBuild().logged())...)
	g := groupOf(ctx, append(parts, following...))
	g.Add(servers.serve, func(error) { servers.stop() })
	g.Add(admin.run, func(error) { admin.stop() })
	return g.Run()
}

// followedFiles have files that change while Usher runs. Each may be nil.
type followedFiles struct {
	dir                     *configdir.Source // it follows its files by itself
	config                  *configfile.File
	keys                    *xds.KeyPair
	kubernetes, tokenReview *kubeapi.Client
}

// follow returns the parts that follow the files, and what SIGHUP reads again.
func (o serveOptions) follow(f followedFiles, log *slog.Logger, plane *controlplane.Plane, problems *controlplane.Problems) (parts []func(context.Context) error, reloadables []reloadable) {
	if f.dir != nil {
		reloadables = append(reloadables, reloadable{o.configDir, f.dir.Reload})
	}
	if f.config != nil {
		plane.SetConfigFile(f.config.Content())
		parts = append(parts, func(ctx context.Context) error { return f.config.Run(ctx, plane.SetConfigFile) })
		reloadables = append(reloadables, reloadable{o.configFile, f.config.Reload})
	}
	if f.keys != nil {
		parts = append(parts, f.keys.Run, func(ctx context.Context) error { return f.keys.ReportProblems(ctx, problems.ReportCertificate) })
		reloadables = append(reloadables, reloadable{o.tlsCert, f.keys.Reload})
	}
	for source, client := range map[string]*kubeapi.Client{"the files for Kubernetes": f.kubernetes, "the files for --token-review": f.tokenReview} {
		if client != nil {
			parts = append(parts, func(ctx context.Context) error {
				return client.Run(ctx, log, func(found []problem.Problem) { problems.Report(source, found) })
			})
		}
	}
	return parts, reloadables
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
