package loadbalancer

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	logsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	recordsv1 "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// reporting is a listener whose Envoy reports each connection, as Envoy writes it, to
// a real store, from the moment that its Service switches headers on.
type reporting struct {
	t        *testing.T
	receiver *evidence.Receiver
	key      evidence.Key
	mode     settings.Mode
	trusted  []netip.Prefix
	lost     int // connections with data that were refused
}

// report sends what Envoy logs of a connection: the address in its header or its own,
// how many bytes came, the filter chain, and the response flags.
func (r *reporting) report(from, header, bytes, chain, flags string) {
	l := evidence.Listener{
		Gateway: gateway.ID{Name: "edge"}, Kubernetes: edge, Port: 8080, Mode: r.mode, FollowsService: true, Trusted: r.trusted,
	}
	listener, signature, _ := r.key.Metadata(l)
	receive, _, err := r.receiver.Authenticate(metadata.Pairs(evidence.ListenerKey, listener, evidence.SignatureKey, signature))
	if err != nil {
		r.t.Fatal(err)
	}
	text := strings.Join([]string{from + ":40000", header, "10.0.1.5:8080", "10.0.1.5:8080", bytes, flags, chain, "-", "3"}, "\t")
	body := &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: text}}
	message, err := proto.Marshal(&logsv1.ExportLogsServiceRequest{ResourceLogs: []*recordsv1.ResourceLogs{{
		ScopeLogs: []*recordsv1.ScopeLogs{{LogRecords: []*recordsv1.LogRecord{{Body: body}}}},
	}}})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := receive(message); err != nil {
		r.t.Fatal(err)
	}
}

// header is a request with a header, which a listener that is off answers 400.
func (r *reporting) header(from string) {
	if r.mode == settings.Off {
		r.lost++
		r.report(from, from+":40000", "46", "8080", "DPE")
		return
	}
	r.report(from, "203.0.113.7:1234", "46", "8080", "-")
}

// plain is a request without a header, which a strict listener refuses.
func (r *reporting) plain(from string) {
	if r.mode == settings.Strict {
		r.lost++
		r.check(from)
		return
	}
	r.report(from, from+":40000", "46", "8080", "-")
}

// check is a TCP health check: it connects and closes.
func (r *reporting) check(from string) { r.report(from, from+":40000", "0", "-", "-") }

// TestConnectionsOverHours runs what Envoy reports through the store and the decisions,
// second by second, with health checks beside it.
func TestConnectionsOverHours(t *testing.T) {
	t.Parallel()
	const balancer, other, client = "10.0.3.7", "10.0.3.9", "10.244.1.5"
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.3.0/24")}
	for name, c := range map[string]struct {
		isOff   bool // the Service switches headers off, long ago; otherwise on, at the beginning
		minutes int
		second  func(r *reporting, s int)
		modes   []settings.Mode // after the first one: off or permissive
		lost    int             // at most
	}{
		"few requests, and checks from the same address": {
			minutes: 240, modes: []settings.Mode{settings.Strict},
			second: func(r *reporting, s int) {
				if s%10 == 0 {
					r.check(balancer)
				}
				if s%300 == 0 || s < 1200 && s%5 == 1 {
					r.header(balancer)
				}
			},
		},
		"no request for hours, and checks from another address": {
			minutes: 240, modes: []settings.Mode{settings.Strict},
			second: func(r *reporting, s int) {
				if s%10 == 0 {
					r.check(other)
				}
				if s < 1200 && s%90 == 3 {
					r.header(balancer)
				}
			},
		},
		"many requests, and checks from another trusted address": {
			minutes: 60, modes: []settings.Mode{settings.Strict},
			second: func(r *reporting, s int) {
				r.trusted = trusted
				if s%10 == 0 {
					r.check(other)
				}
				r.header(balancer)
			},
		},
		"trusted_cidrs is set after clients connected past the load balancer": {
			minutes: 40, modes: []settings.Mode{settings.Strict}, lost: 150,
			second: func(r *reporting, s int) {
				r.header(balancer)
				if s >= 1200 && s < 1500 && s%2 == 0 {
					r.plain(client)
				}
				if s == 1505 {
					r.trusted = trusted
				}
			},
		},
		"half of the connections of one address have no header": {
			minutes: 40,
			second: func(r *reporting, _ int) {
				r.header(balancer)
				r.plain(balancer)
			},
		},
		"headers stop, and checks go on": {
			minutes: 60, modes: []settings.Mode{settings.Strict, settings.Permissive}, lost: 80,
			second: func(r *reporting, s int) {
				if s%10 == 0 {
					r.check(balancer)
				}
				if s < 1800 {
					r.header(balancer)
				} else {
					r.plain(balancer)
				}
			},
		},
		"headers come that the Service does not switch on, beside checks, and stop": {
			isOff: true, minutes: 40, modes: []settings.Mode{settings.Permissive, settings.Off}, lost: 61,
			second: func(r *reporting, s int) {
				r.trusted = trusted
				if s%10 == 0 {
					r.check(balancer)
				}
				if s < 1200 || s >= 1800 {
					r.plain(balancer)
				} else {
					r.header(balancer)
				}
			},
		},
		"headers come that the Service does not switch on, and trusted_cidrs lacks their address": {
			isOff: true, minutes: 20, lost: 1200,
			second: func(r *reporting, _ int) {
				r.trusted = trusted
				r.header(client)
			},
		},
		"headers come that the Service does not switch on, beside HTTP checks without one": {
			isOff: true, minutes: 20, lost: 1200,
			second: func(r *reporting, s int) {
				r.trusted = trusted
				if s%30 == 0 {
					r.plain(balancer)
				}
				r.header(balancer)
			},
		},
		"clients write headers, behind a load balancer that sends none": {
			isOff: true, minutes: 20, lost: 1200,
			second: func(r *reporting, s int) {
				r.trusted = trusted
				if s%8 == 0 {
					r.plain(balancer)
				}
				r.header(balancer)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, modes := runReports(t, c.isOff, c.minutes, c.second)
				if !slices.Equal(modes, c.modes) {
					t.Errorf("the listener becomes %q, want %q", modes, c.modes)
				}
				if r.lost > c.lost {
					t.Errorf("%d connections are lost, want at most %d", r.lost, c.lost)
				}
			})
		})
	}
}

// runReports returns the modes that a listener gets in so many minutes.
func runReports(t *testing.T, isOff bool, minutes int, second func(r *reporting, s int)) (*reporting, []settings.Mode) {
	t.Helper()
	key, store := evidence.NewKey([]byte("a secret of all replicas")), evidence.NewStore(nil)
	r := &reporting{t: t, key: key, receiver: evidence.NewReceiver(key, store), mode: settings.Permissive}
	var reported *evidence.Summary
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		store.Watch(ctx, gateway.ID{Name: "edge"}, edge, func(p evidence.Ports) {
			s := p[8080]
			reported = &s
		})
	}()
	begin, p := time.Now(), policy{grace: 10 * time.Minute}
	l := listenerState{portIntent: portIntent{State: proxyOn}, Changed: begin}
	if isOff {
		r.mode, l = settings.Off, listenerState{portIntent: portIntent{State: proxyOff}}
	}
	o := observation{watchedSince: begin.Add(-time.Hour)}
	var modes []settings.Mode
	for s := range minutes * 60 {
		second(r, s)
		time.Sleep(time.Second)
		synctest.Wait()
		if reported != nil {
			o, reported = o.after(*reported), nil
		}
		now := time.Now()
		o = o.at(now, l.Finding)
		l = l.afterConnections(o, p, now)
		o = o.at(now, l.Finding)
		if mode, _ := l.mode(p.grace, now); mode != r.mode {
			r.mode = mode
			modes = append(modes, mode)
		}
	}
	cancel()
	<-watched
	return r, modes
}
