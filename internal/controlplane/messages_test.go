package controlplane

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/messages"
	"github.com/usherproxy/usher/xds"
)

// TestMessages provokes every problem of this package, and every error that ends a
// stream.
func TestMessages(t *testing.T) {
	var lines []string
	addProblems := func(problems []problem.Problem) {
		if len(problems) == 0 {
			t.Error("no problem")
		}
		for _, p := range problems {
			lines = append(lines, p.String())
		}
	}
	addError := func(err error) { lines = append(lines, status.Convert(err).Message()) }

	log, metrics, id := slog.New(slog.DiscardHandler), prometheus.NewRegistry(), gateway.ID{Name: "edge"}
	plane := New(Options{Logger: log, Metrics: NewMetrics(metrics), Problems: NewProblems(log, metrics), MaxGateways: 1})

	_, err := GatewayOf(xds.Node{ID: "edge"})
	addError(err)
	close(plane.ended)
	_, err = plane.subscribe(id, &stream{})
	addError(err)
	worker := newGatewayWorker(plane, id)
	plane.workers[gateway.ID{Name: "other"}] = worker
	_, err = plane.subscribe(id, &stream{})
	addError(err)
	ended := make(chan error, 1)
	close(plane.running)
	close(worker.done)
	plane.workers[id] = worker
	go func() { ended <- plane.Watch(t.Context(), edge, nil) }()
	addError(<-ended)
	addError(ambiguousError(edge, []*gateway.Instance{{Node: "a"}, {Node: "b"}}))

	bug := errors.New("bug in Usher: panic in PART at file.go:1: …")
	addProblems(failureProblem(id, bug))
	addProblems(failureProblem(id, earlyEnd(errors.New("REASON"))))
	addProblems(newBalancers(nil, id, log).withProblem(gateway.KubernetesService{Namespace: "consul", Name: "edge"}, bug).Problems)
	from := []netip.Addr{netip.MustParseAddr("10.0.3.7")}
	addProblems((&connections{shown: map[evidence.PortMode]shown{
		{Port: 8080, Mode: settings.Off}: {conclusion: headersOff, from: from}, {Port: 8081, Mode: settings.Strict}: {conclusion: noHeaders, from: from},
	}}).problems(id))
	late := &stream{node: xds.Node{ID: "typo", Cluster: "edge", Peer: netip.MustParseAddr("192.0.2.1")}, missingSince: time.Now().Add(-time.Hour)}
	addProblems(worker.reportMissingInstance(late))
	addProblems([]problem.Problem{
		rejectionProblem(late.node, xds.Listener, xds.Rejection{Resources: []string{"http:0.0.0.0:8080"}, Message: "MESSAGE"}),
		rejectionProblem(late.node, xds.Listener, xds.Rejection{Resources: []string{"http:0.0.0.0:8080"}, Message: "MESSAGE", AcceptedAt: time.Unix(0, 0)}),
		rejectionProblem(late.node, xds.Listener, xds.Rejection{Resources: []string{"a", "b"}, Message: "MESSAGE", Missing: []string{"b"}}),
		heldBackProblem(id, "8080", []string{"ENVOY", "ENVOY", "ENVOY", "ENVOY"}),
	})
	misspelt := configFile{read: settings.File{Gateways: map[string]settings.Layer{"egde": {Where: "usher.hcl:3"}}}, names: []string{"edge"}}
	addProblems([]problem.Problem{misspelt.unknownGateway("egde", []string{"edge"}), (&configFile{read: misspelt.read, names: []string{}}).unknownGateway("egde", nil), (&configFile{read: misspelt.read}).unknownGateway("egde", []string{"edge"})})
	var invalid encodedType
	invalid.encode(xds.Cluster, "web", &clusterv3.Cluster{})
	addProblems(invalid.problems)
	messages.Check(t, lines, "status.Error", "status.Errorf", "problem.Problem")
}
