package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Options say what to probe, and how.
type Options struct {
	Target  string        // HOST:PORT, where HOST is a name, an IPv4 address, or an IPv6 address in brackets
	TCP     bool          // send a line of text instead of an HTTP request
	TLS     bool          // speak TLS only; otherwise TLS is tried if nothing is served without it
	Host    string        // of the request and of the TLS handshake; "" is the host of Target
	Path    string        // of the request; "" is /
	Method  string        // of the request; "" is GET
	Source  netip.Addr    // the client that the headers name; the zero value is a documentation address of the target's family
	Timeout time.Duration // to wait for each answer; more than 0
	Version string        // of Usher, for the User-Agent

	// pause is how long the probe waits for a reaction between two segments, at least; 0 is minPause.
	pause time.Duration
	// Lookup resolves names; nil is the resolver of the machine.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// maxAddresses is how many addresses of a name are probed.
const maxAddresses = 8

// UserAgent is the User-Agent of a probe's requests, by which operators find them in logs.
func (o *Options) UserAgent() string { return "usher-probe/" + o.Version }

// Check returns an error that names the flag or argument that is wrong.
func (o *Options) Check() error {
	if o.Timeout <= 0 {
		return fmt.Errorf("--timeout %v: it must be more than 0s; use a duration such as 3s", o.Timeout)
	}
	if _, _, err := splitTarget(o.Target); err != nil {
		return err
	}
	if o.TCP && (o.Path != "" || o.Method != "") {
		return errors.New("--tcp: no HTTP request is sent; remove --path and --method, or --tcp")
	}
	if strings.ContainsAny(o.Host, " /\r\n\t@") {
		return fmt.Errorf("--host %q: use the name that clients ask for, such as www.example.com", o.Host)
	}
	if o.Path != "" && !strings.HasPrefix(o.Path, "/") {
		return fmt.Errorf("--path %q: it must begin with /", o.Path)
	}
	if _, err := url.ParseRequestURI(o.path()); err != nil || strings.ContainsAny(o.Path, " \r\n\t") {
		return fmt.Errorf("--path %q: it is not the path of a URL; write spaces and the like as %%20", o.Path)
	}
	if !token.MatchString(o.method()) {
		return fmt.Errorf("--method %q: use a method of HTTP, such as GET or HEAD", o.Method)
	}
	return nil
}

// splitTarget returns the host and the port of a target.
func splitTarget(target string) (string, uint16, error) {
	if target == "" {
		return "", 0, errors.New("HOST:PORT is missing; write the address of a listener, such as gateway.example.com:8080")
	}
	if _, err := netip.ParseAddr(target); err == nil && strings.Contains(target, ":") {
		return "", 0, fmt.Errorf("%q has no port; write [%s]:PORT, such as [%s]:8080", target, target, target)
	}
	if strings.Contains(target, "://") {
		return "", 0, fmt.Errorf("%q is a URL; write HOST:PORT, such as gateway.example.com:8080, and use --path and --tls", target)
	}
	host, port, err := net.SplitHostPort(target)
	if err != nil && !strings.Contains(target, ":") {
		return "", 0, fmt.Errorf("%q has no port; write HOST:PORT, such as %s:8080", target, target)
	}
	n, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || host == "" || portErr != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is not HOST:PORT; write for example gateway.example.com:8080 or [2001:db8::1]:8080", target)
	}
	return host, uint16(n), nil
}

// addresses returns what the target's host resolves to, in the resolver's order and without repetition, at most
// maxAddresses.
func (o *Options) addresses(ctx context.Context) ([]netip.AddrPort, error) {
	host, port, err := splitTarget(o.Target)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ip, port)}, nil
	}
	lookup := o.Lookup
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	ips, err := lookup(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("%s: the name has no address: %w", o.Target, err)
	}
	var all []netip.AddrPort
	seen := map[netip.Addr]bool{}
	for _, ip := range ips {
		if ip = ip.Unmap(); !seen[ip] && len(all) < maxAddresses {
			seen[ip] = true
			all = append(all, netip.AddrPortFrom(ip, port))
		}
	}
	return all, nil
}

// serverName is the name in the TLS handshake; "" for an IP address, which must not be there (RFC 6066).
func (o *Options) serverName() string {
	host := o.host()
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return ""
	}
	return host
}

// zone is the zone of an IPv6 address, which means something on this host only (RFC 6874).
var zone = regexp.MustCompile(`%[^\]]*\]`)

// host is the Host of the request.
func (o *Options) host() string { return cmp.Or(o.Host, zone.ReplaceAllString(o.Target, "]")) }

// token is what a method can be (RFC 9110).
var token = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

func (o *Options) path() string { return cmp.Or(o.Path, "/") }

func (o *Options) method() string { return cmp.Or(o.Method, http.MethodGet) }

// payload returns what follows the header. A text has more than sixteen bytes: with fewer, Envoy waits for more
// before it decides that there is no header.
func (o *Options) payload() []byte {
	if o.TCP {
		return []byte(o.UserAgent() + " looks for PROXY protocol; please ignore this line\r\n")
	}
	return fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nAccept: */*\r\n\r\n", o.method(), o.path(), o.host(), o.UserAgent())
}
