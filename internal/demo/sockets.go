package demo

import (
	"context"
	"fmt"
	"net"
)

// The addresses of the parts. All of 127.0.0.0/8 is the machine's own on
// Linux; elsewhere the ones besides 127.0.0.1 have to be made first.
const (
	clientIP   = "127.0.0.7"
	balancerIP = "127.0.0.2"
	gatewayIP  = "127.0.0.1"
	serviceIP  = "127.0.0.1"
)

// gatewayPort is the lab's port. The demo takes another one where it is taken.
const gatewayPort = 8080

// sockets are the addresses that the parts listen on.
type sockets struct {
	echo         net.Listener
	plain, proxy net.Listener // of the balancer: without and with a PROXY header
	gatewayPort  int          // Envoy binds it
	xdsAddr      string       // Usher binds it
}

// bind takes every address before anything runs, so that one that is taken is
// an error at once.
func bind(ctx context.Context) (*sockets, error) {
	s := &sockets{}
	var lc net.ListenConfig
	for _, want := range []struct {
		ip string
		to *net.Listener
	}{{serviceIP, &s.echo}, {balancerIP, &s.plain}, {balancerIP, &s.proxy}, {clientIP, nil}} {
		ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort(want.ip, "0"))
		if err != nil {
			s.close()
			return nil, fmt.Errorf("the demo needs the loopback address %s: %w", want.ip, err)
		}
		if want.to == nil {
			ln.Close()
			continue
		}
		*want.to = ln
	}
	var err error
	if s.gatewayPort, err = freePort(ctx, gatewayIP, gatewayPort); err == nil {
		var port int
		port, err = freePort(ctx, "127.0.0.1", 0)
		s.xdsAddr = fmt.Sprintf("127.0.0.1:%d", port)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *sockets) close() {
	for _, ln := range []net.Listener{s.echo, s.plain, s.proxy} {
		if ln != nil {
			ln.Close()
		}
	}
}

// freePort gives the preferred port if nobody listens on it, else another.
func freePort(ctx context.Context, ip string, preferred int) (int, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", fmt.Sprintf("%s:%d", ip, preferred))
	if err != nil && preferred != 0 {
		return freePort(ctx, ip, 0)
	}
	if err != nil {
		return 0, fmt.Errorf("a free port on %s: %w", ip, err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}
