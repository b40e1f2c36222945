package bootstrap

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// address is where something listens: a host with a port, or the path of a Unix socket.
type address struct {
	Host string // an IP address or DNS name; empty with Path
	Port uint16
	Path string
	TLS  bool
}

// IsDNS reports whether the host has to be looked up.
func (a address) IsDNS() bool { return a.Path == "" && net.ParseIP(a.Host) == nil }

// parseServer reads Options.XDSAddr.
func parseServer(addr string) (address, error) {
	scheme, rest, found := strings.Cut(addr, "://")
	if !found {
		scheme, rest = "http", addr
	}
	switch scheme {
	case "unix":
		if rest == "" {
			return address{}, fmt.Errorf("xDS address %q: the path is missing; use unix:///path/to/socket", addr)
		}
		return address{Path: rest}, nil
	case "http", "https":
		a, err := parseHostPort("xDS", rest)
		if err == nil && a.Port == 0 {
			err = fmt.Errorf("xDS address %q: the port is 0; use the port that Usher listens on", addr)
		}
		a.TLS = scheme == "https"
		return a, err
	}
	return address{}, fmt.Errorf("xDS address %q: scheme %q is unknown; use host:port, https://host:port or unix:///path",
		addr, scheme)
}

// parseIPPort reads ip:port; what names the address in errors. The host localhost means 127.0.0.1, because Envoy
// does not resolve names here.
func parseIPPort(what, addr string) (address, error) {
	a, err := parseHostPort(what, addr)
	if a.Host == "localhost" {
		a.Host = "127.0.0.1"
	}
	if err == nil && net.ParseIP(a.Host) == nil {
		err = fmt.Errorf("%s address %q: %q is not an IP address; use ip:port, such as 127.0.0.1:%d", what, addr, a.Host, a.Port)
	}
	return a, err
}

// parseHostPort reads host:port; what names the address in errors.
func parseHostPort(what, addr string) (address, error) {
	bad := func(why string) (address, error) {
		return address{}, fmt.Errorf("%s address %q: %s; use host:port", what, addr, why)
	}
	host, portText, err := net.SplitHostPort(addr)
	if wrong := (*net.AddrError)(nil); errors.As(err, &wrong) {
		return bad(wrong.Err)
	}
	if host == "" || strings.ContainsAny(host, "/ @?#") {
		return bad("the host is missing or not a host")
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return bad(fmt.Sprintf("%q is not a port", portText))
	}
	return address{Host: host, Port: uint16(port)}, nil
}

// checkCertificates returns why text is not a list of PEM certificates. A key among them is an error: whatever reads
// the bootstrap would have it.
func checkCertificates(text string) error {
	n := 0
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		n++
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("PEM block %d is a %s; give certificates only", n, block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("PEM block %d: %w", n, err)
		}
	}
	if n == 0 {
		return errors.New("there is none in PEM; an https address needs one (--ca-file)")
	}
	return nil
}
