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
	lastPort  = 32767
)

// portsTaken counts the ports that FreePort has tried. It starts anywhere, because tests of another package may run.
var portsTaken atomic.Int64

func init() { portsTaken.Store(rand.Int64N(lastPort - firstPort)) }

// FreePort returns a TCP port without a listener at an IP address of the host; nil is where the test runs. No other call
// in this process gets the same one, and no connection that goes out has it.
func FreePort(t *testing.T, host Host, ip string) (port int) {
	t.Helper()
	var err error
	for range lastPort - firstPort {
		port = firstPort + int(portsTaken.Add(1))%(lastPort-firstPort+1)
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
