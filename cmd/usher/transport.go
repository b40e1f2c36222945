package main

import (
	"log/slog"
	"net"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/usherproxy/usher/xds"
)

// transport is how callers reach Usher's ports, apart from the admin port: over TLS or in plain text.
type transport struct {
	keys       *xds.KeyPair // nil: plain text
	handshakes *xds.Handshakes
}

// newTransport reads the certificate that the flags name.
func (o serveOptions) newTransport(log *slog.Logger, metrics prometheus.Registerer) (transport, error) {
	keys, err := o.keyPair(log, metrics)
	if err != nil {
		return transport{}, err
	}
	return transport{keys, xds.NewHandshakes(log, metrics)}, nil
}

// credentials returns the credentials of a gRPC server.
func (t transport) credentials(port string) credentials.TransportCredentials {
	if t.keys == nil {
		return t.handshakes.Credentials(port, insecure.NewCredentials())
	}
	return t.handshakes.Credentials(port, t.keys.Credentials())
}

// listener returns the listener of an HTTP server. Without HTTP/2 a connection has one request at a time, so that the
// server's limit of connections is one of requests, too.
func (t transport) listener(port string, l net.Listener) net.Listener {
	config := t.keys.TLSConfig()
	config.NextProtos = []string{"http/1.1"}
	return t.handshakes.Listener(port, l, config)
}
