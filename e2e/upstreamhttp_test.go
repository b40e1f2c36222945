//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
)

// TestSidecarsOfHTTPServicesTakeNoPROXYHeaders shows why `upstream` is for tcp
// listeners only. A sidecar of an http service reads requests, so a PROXY header in
// the mesh's mutual TLS is a bad request to it. It would also send requests of
// several clients on one connection to the service, which one header cannot name.
func TestSidecarsOfHTTPServicesTakeNoPROXYHeaders(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	leaf, err := leafOf(l.Consul, "ingress-gateway")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		header string
		status int
	}{{"nothing", http.StatusOK}, {"v1, IPv4", http.StatusBadRequest}, {"v2, IPv4", http.StatusBadRequest}} {
		if got := askSidecar(t, l, leaf, lab.PrefaceNamed(c.header)); got != c.status {
			t.Errorf("%s: the sidecar answers %d, want %d", c.header, got, c.status)
		}
	}
}

// askSidecar sends a request to the sidecar as a gateway does, behind a PROXY header, and returns the status.
func askSidecar(t *testing.T, l *lab.Lab, leaf tls.Certificate, header io.WriterTo) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.RequestTimeout)
	defer cancel()
	plain, err := l.Gateway.Dial(ctx, "tcp", l.Service.Addr(21000))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	conn := tls.Client(plain, &tls.Config{Certificates: []tls.Certificate{leaf}, InsecureSkipVerify: true}) // its SPIFFE id is not the story
	if _, err := header.WriteTo(conn); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", lab.NewPath(), lab.ServiceHost)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	return res.StatusCode
}
