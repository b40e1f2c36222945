//go:build e2e

package e2e

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	logsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestStrangersReportNothing sends reports to Usher that no listener of its own
// has signed.
func TestStrangersReportNothing(t *testing.T) {
	t.Parallel()
	s := startModesStory(t)
	conn, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(s.usher.GRPCAddr, "http://"),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return s.Gateway.Dial(ctx, "tcp", address)
		}), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for name, md := range map[string]metadata.MD{
		"no signature":    {},
		"a made-up one":   metadata.Pairs("usher-listener", "Z2F0ZXdheT1pbmdyZXNzLWdhdGV3YXkmcG9ydD04MDgw", "usher-signature", "00"),
		"a token instead": metadata.Pairs("x-consul-token", "anything"),
	} {
		_, err := logsv1.NewLogsServiceClient(conn).Export(metadata.NewOutgoingContext(t.Context(), md), &logsv1.ExportLogsServiceRequest{})
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v, want Unauthenticated", name, err)
		}
	}
	s.usher.WaitOutput(t, "a report: the report's signature is not of this Usher")
	lab.WaitStatus(t, s.Request("/"), 200) // the gateway's own stream goes on
}

// TestClientPastTheLoadBalancer lets a client connect to the gateway itself, without
// a header, in the grace period of a Service whose load balancer sends headers.
// It keeps the listener permissive, and serves itself; unless trusted_cidrs says that
// it is none of the load balancer's addresses.
func TestClientPastTheLoadBalancer(t *testing.T) {
	t.Parallel()
	l := lab.StartKubernetesLab(t)
	l.ApplyChart(t, "../internal/loadbalancer/testdata/consul-values.yaml", false)
	p := l.StartPod(t, l.Gateway, 5*time.Second)
	p.WaitMode(t, "off", testprocess.ChangeDeadline)
	past := lab.Request{From: l.Client, To: l.Gateway.Addr(8080), Path: "/"}
	// connect switches headers on, and goes on to connect past the load balancer until Usher writes something.
	connect := func(trusted []string, until string) {
		t.Helper()
		setTrustedCIDRs(t, l.Lab, trusted)
		l.API.Annotate(t, awsHeaders, new("*"))
		testprocess.Eventually(t, "the listener is permissive", testprocess.ChangeDeadline, func() error {
			if p.Usher.GracePeriodEnd(t) == "" {
				return errors.Join(errors.New("there is no grace period"), p.Usher.Alive())
			}
			return nil
		})
		l.HAProxy.SetHeader(t, lab.SendV2)
		lab.WaitStatus(t, l.Request("/"), 200)
		testprocess.Eventually(t, "Usher writes "+until, 2*testprocess.ChangeDeadline, func() error {
			_, err := past.Do(t.Context())
			if !strings.Contains(p.Usher.Output(t), until) {
				return errors.Join(err, errors.New("not yet"), p.Usher.Alive())
			}
			return nil
		})
	}

	connect([]string{lab.BalancerIP + "/32"}, "port=8080 mode=strict")
	p.WaitMode(t, "strict", testprocess.ChangeDeadline)
	l.API.Annotate(t, awsHeaders, nil)
	l.HAProxy.SetHeader(t, lab.SendNone)
	p.WaitMode(t, "off", testprocess.ChangeDeadline)

	connect(nil, "connections come without a PROXY header")
	p.Usher.WaitOutput(t, lab.ClientIP)
	lab.WaitStatus(t, past, 200)
}

// setTrustedCIDRs sets the networks for every gateway; nil: all.
func setTrustedCIDRs(t *testing.T, l *lab.Lab, trusted []string) {
	t.Helper()
	config := map[string]any{}
	if trusted != nil {
		config["usher"] = map[string]any{"proxy_protocol": map[string]any{"trusted_cidrs": trusted}}
	}
	_, _, err := l.Consul.Client.ConfigEntries().Set(&api.ProxyConfigEntry{
		Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal, AccessLogs: &api.AccessLogsConfig{Enabled: true}, Config: config,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}
