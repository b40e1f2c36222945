package collect

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"

	"github.com/usherproxy/usher/internal/doctor"
)

// certificate returns the certificate that a port shows. It is not verified: an expired one is a fact, too.
func certificate(ctx context.Context, address string) (*doctor.Certificate, error) {
	ctx, cancel := inTime(ctx)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
	conn, err := dialer.DialContext(ctx, "tcp", strings.TrimPrefix(strings.TrimPrefix(address, "https://"), "http://"))
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return nil, errors.New("the port does not speak TLS, so it has no certificate")
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0] // a server always has one
	c := &doctor.Certificate{Names: leaf.DNSNames, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
	for _, ip := range leaf.IPAddresses {
		c.Names = append(c.Names, ip.String())
	}
	return c, nil
}
