//go:build e2e

package testprocess

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
)

// The ports of FreePort. Linux gives ports from 32768 on to connections that go out.
const (
	firstPort = 16384
	ports     = 16384
)

// portsTried counts the ports that FreePort has tried. It starts anywhere, because tests of another package may run.
var portsTried atomic.Int64

func init() { portsTried.Store(rand.Int64N(ports)) }

// FreePort returns a TCP port without a listener on loopback where the test runs. No other call in this process gets the
// same one, and no connection that goes out has it.
func FreePort(t *testing.T) int {
	t.Helper()
	return FreePortAt(t, nil, "127.0.0.1")
}

// FreePortAt is FreePort for an IP address of a host; nil is where the test runs.
func FreePortAt(t *testing.T, host Host, ip string) (port int) {
	t.Helper()
	var err error
	for range ports {
		port = firstPort + int(portsTried.Add(1))%ports
		if err = onHost(host, func() error { return tryPort(t, ip, port) }); err == nil {
			return port
		}
	}
	t.Fatalf("no port is free at %s: %v", ip, err)
	return 0
}

func tryPort(t *testing.T, ip string, port int) error {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(ip, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return l.Close()
}
