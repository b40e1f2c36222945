package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/loadbalancer"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/reportkey"
	"github.com/usherproxy/usher/xds"
)

// connectionReports are what Envoys report of connections.
type connectionReports struct {
	store    *evidence.Store
	key      evidence.Key       // at the start
	receiver *evidence.Receiver // nil: Envoys report nothing
	secret   *reportkey.Secret  // brings the key later if the start did not; nil: another place has the key
}

// reportParts are what connection reports need of the rest of Usher.
type reportParts struct {
	log        *slog.Logger
	metrics    prometheus.Registerer
	problems   *controlplane.Problems
	kubernetes *kubeapi.Client // nil outside Kubernetes
	memory     reportkey.Memory
}

// startReports returns an empty store, and the key that the flags give. With --connection-report-key-secret it waits a few
// seconds for the API server, so that listeners do not change right after the start.
func (o serveOptions) startReports(ctx context.Context, p reportParts) (connectionReports, error) {
	r := connectionReports{store: evidence.NewStore(p.metrics)}
	switch {
	case !o.connectionReports:
		return r, nil
	case o.reportKeySecret != "":
		name, err := parseObjectName("--connection-report-key-secret", o.reportKeySecret, "a Secret, such as consul/usher-report-key")
		if err != nil {
			return r, err
		}
		if p.kubernetes == nil {
			return r, errors.New("--connection-report-key-secret: Usher does not run in Kubernetes; name the cluster with --kubeconfig, or remove the flag")
		}
		r.secret = reportkey.New(reportkey.Options{
			Client: p.kubernetes, Logger: p.log, Secret: name, Memory: p.memory,
			Report: func(found []problem.Problem) { p.problems.Report("the key of connection reports", found) },
		})
		r.key = r.secret.Start(ctx)
	default:
		var err error
		if r.key, err = o.reportKey(); err != nil {
			return r, err
		}
		if r.key.IsZero() {
			p.log.Info("Envoys do not report connections, because Usher's own Consul token is replaced now and then and gives no key for it; " +
				"set --connection-report-key-secret or --connection-report-key-file")
			return r, nil
		}
	}
	r.receiver = evidence.NewReceiver(r.key, r.store)
	return r, nil
}

// taker returns what takes reports; nil if there are none.
func (r connectionReports) taker() xds.Reports {
	if r.receiver == nil {
		return nil
	}
	return r.receiver
}

// shown returns what connections show; nil if there are no reports. Then the Services alone decide, whatever is recorded.
func (r connectionReports) shown() loadbalancer.EvidenceSource {
	if r.receiver == nil {
		return nil
	}
	return r.store
}

// run brings a key that was missing at the start to those that need it.
func (r connectionReports) run(ctx context.Context, plane *controlplane.Plane) error {
	return r.secret.Run(ctx, func(k evidence.Key) {
		r.receiver.SetKey(k)
		plane.SetReportKey(k)
	})
}

// reportKey returns the key of the connection reports; the zero Key if there is no stable one.
//
// The key has to be the same for all replicas and after a restart. Usher's own Consul token is, and its holder may read
// all that a report can influence. Where every caller gets the configuration of any gateway, because Consul has no ACLs
// or there is no Consul, the key protects nothing. A login has another token each time, and a token in a file is
// replaced now and then, and so they give no key.
func (o serveOptions) reportKey() (evidence.Key, error) {
	switch {
	case o.reportKeyFile != "":
		content, err := os.ReadFile(o.reportKeyFile)
		if err != nil {
			return evidence.Key{}, fmt.Errorf("--connection-report-key-file: %w", err)
		}
		key, err := evidence.ParseKey(content)
		if err != nil {
			return evidence.Key{}, fmt.Errorf("--connection-report-key-file %s: %w", o.reportKeyFile, err)
		}
		return key, nil
	case o.loginAuthMethod != "":
		return evidence.Key{}, nil
	case o.configDir != "":
		return evidence.NewKey([]byte("files")), nil
	}
	config := api.DefaultConfig()
	if config.TokenFile != "" {
		return evidence.Key{}, nil
	}
	return evidence.NewKey([]byte("token " + config.Token)), nil
}
