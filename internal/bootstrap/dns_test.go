//go:build e2e

package bootstrap_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/usherproxy/usher/internal/bootstrap"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// xdsServer stands for an Usher that has nothing to say: it sees the streams of Envoys.
type xdsServer struct {
	*grpc.Server
	streams chan struct{}
}

func startXDSServer(t *testing.T, address string) *xdsServer {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &xdsServer{streams: make(chan struct{}, 1)}
	s.Server = grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		select {
		case s.streams <- struct{}{}:
		default: // it has been seen already
		}
		<-stream.Context().Done()
		return nil
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // until Stop
	}()
	t.Cleanup(func() { s.Stop(); <-done })
	return s
}

// waitStream waits for an Envoy.
func (s *xdsServer) waitStream(t *testing.T, envoy *testprocess.Process, deadline time.Duration) {
	t.Helper()
	select {
	case <-s.streams:
	case <-time.After(deadline):
		t.Fatalf("Envoy has not come within %v:\n%s", deadline, envoy.Output(t))
	}
}

// TestEnvoyFindsUsherAtItsNewAddress moves the name of Usher's Service as soon as Envoy is connected, so that gRPC has just
// looked it up. By default gRPC would not do that again for 30 seconds, and Envoy's own retries come on top.
func TestEnvoyFindsUsherAtItsNewAddress(t *testing.T) {
	const found = 20 * time.Second // five until gRPC asks again, and what Envoy waits between its attempts
	for _, version := range []string{"envoy-1.36.2", "envoy-1.40.0"} {
		t.Run(version, func(t *testing.T) {
			dir := t.TempDir()
			hosts, config := filepath.Join(dir, "hosts"), filepath.Join(dir, "bootstrap.json")
			port := strconv.Itoa(testprocess.FreePort(t))
			before := startXDSServer(t, "127.0.0.1:"+port)
			after := startXDSServer(t, "127.0.0.2:"+port)
			v := ofPlainGateway()
			v.AdminBindAddress, v.AdminBindPort = "127.0.0.3", port // beside the two servers
			filled, _ := v.fill(t, dataplaneTemplate(t, bootstrap.DataplaneOptions{XDSAddr: "usher.test:" + port, DrainTime: bootstrap.DefaultDrainTime}))
			write := func(file, text string) {
				t.Helper()
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(config, filled)
			write(hosts, "127.0.0.1 usher.test\n")
			script := fmt.Sprintf("mount --bind %s /etc/hosts && exec %s --config-path %s --use-dynamic-base-id --log-level warn",
				hosts, testprocess.Tool(t, version, "envoy"), config)
			envoy := testprocess.Start(t, testprocess.Command{Name: version, Path: "/usr/bin/unshare", Args: []string{"--mount", "sh", "-c", script}})
			before.waitStream(t, envoy, testprocess.StartDeadline)
			write(hosts, "127.0.0.2 usher.test\n")
			before.Stop()
			after.waitStream(t, envoy, found)
		})
	}
}
