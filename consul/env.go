package consul

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"
)

// defaultHTTPAddr is the default address of Consul's HTTP API, as for Consul's CLI
// (https://developer.hashicorp.com/consul/commands#consul_http_addr).
const defaultHTTPAddr = "localhost:8500"

// address is the address of one of Consul's ports.
type address struct {
	scheme string // http, https or unix
	host   string // host or host:port; empty with scheme unix
	path   string // of the socket with scheme unix; else a prefix of all paths
}

// parseAddress reads the forms that Consul's CLI takes: host:port, http(s)://host[:port][/prefix] and unix:///path.
func parseAddress(s string) (address, error) {
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		scheme, rest = "http", s
	}
	switch scheme = strings.ToLower(scheme); scheme {
	case "unix":
		if rest == "" {
			return address{}, errors.New("the path of the socket is missing; write unix:///path/to/socket")
		}
		return address{scheme: scheme, path: rest}, nil
	case "http", "https":
		return parseHost(scheme, rest, s)
	}
	return address{}, fmt.Errorf("unknown scheme %q; write host:port, http://, https:// or unix://", scheme)
}

func parseHost(scheme, rest, whole string) (address, error) {
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil {
		// The error of url.Parse contains the whole address, and the part before an @ may be a password.
		return address{}, errors.New("not a valid address; write host:port, http://, https:// or unix://")
	}
	switch {
	case (u.Host == "http" || u.Host == "https") && strings.HasPrefix(u.Path, "//"):
		return address{}, fmt.Errorf("the colon is missing after %s; write %s:%s", u.Host, u.Host, u.Path)
	case u.User != nil:
		return address{}, errUserInAddress
	case u.Hostname() == "":
		return address{}, errors.New("the host is missing; write host:port")
	case u.RawQuery != "" || u.Fragment != "":
		return address{}, errors.New("unexpected ? or #; the address must end after the host, port and path")
	case strings.Trim(u.Host, "0123456789") == "":
		return address{}, fmt.Errorf("%q is a port alone; write localhost:%s", whole, u.Host)
	case strings.HasSuffix(u.Host, ":"):
		return address{}, errors.New("the port is missing after the colon; write consul:8500")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return address{}, fmt.Errorf("port %q is not a number from 1 to 65535", p)
		}
	}
	return address{scheme: scheme, host: u.Host, path: strings.TrimRight(u.Path, "/")}, nil
}

// String returns the address for messages.
func (a address) String() string { return a.scheme + "://" + a.host + a.path }

// environment reads Consul's environment variables
// (https://developer.hashicorp.com/consul/commands#environment-variables).
type environment func(string) string

// addressError returns the error for an element of a list of addresses. If the list has an @, it shows only the part after
// the last one, and not the reason: what is before may be a password, and the password may have commas.
func addressError(from, list, element string, err error) error {
	if at := strings.LastIndex(list, "@"); at >= 0 {
		element, err = "…"+list[at:], errUserInAddress
	}
	return fmt.Errorf("%s %q: %w", from, element, err)
}

var errUserInAddress = errors.New("an address cannot contain a user; use " + api.HTTPAuthEnvName)

// tls returns the TLS settings for Consul's HTTP API.
func (env environment) tls() (*tls.Config, error) {
	verify, err := env.bool(api.HTTPSSLVerifyEnvName, true)
	if err != nil {
		return nil, err
	}
	config, err := api.SetupTLSConfig(&api.TLSConfig{
		Address:            env(api.HTTPTLSServerName),
		CAFile:             env(api.HTTPCAFile),
		CAPath:             env(api.HTTPCAPath),
		CertFile:           env(api.HTTPClientCert),
		KeyFile:            env(api.HTTPClientKey),
		InsecureSkipVerify: !verify,
	})
	if err != nil {
		return nil, fmt.Errorf("TLS settings for consul (%s, %s, %s, %s): %w",
			api.HTTPCAFile, api.HTTPCAPath, api.HTTPClientCert, api.HTTPClientKey, err)
	}
	return config, nil
}

// auth returns the user and password for HTTP basic authentication, nil for none.
func (env environment) auth() *url.Userinfo {
	user, password, _ := strings.Cut(env(api.HTTPAuthEnvName), ":")
	if user == "" && password == "" {
		return nil
	}
	return url.UserPassword(user, password)
}

func (env environment) bool(name string, unset bool) (bool, error) {
	s := env(name)
	if s == "" {
		return unset, nil
	}
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, fmt.Errorf("%s %q: use true or false", name, s)
	}
	return b, nil
}

// grpcTarget says how to reach Consul's gRPC port. The zero value means that no address was given.
type grpcTarget struct {
	name string             // what a gRPC client dials: dns:///host:port or unix:///path
	tls  func() *tls.Config // returns the settings for a new connection; nil: plaintext
}

// grpc returns how to reach the gRPC ports at the addresses of the flag, or else of CONSUL_GRPC_ADDR; nil if both are empty.
// Their certificate authorities are those of CONSUL_GRPC_CACERT and CONSUL_GRPC_CAPATH, or else those of the HTTP API. All
// other TLS settings are those of the HTTP API.
func (env environment) grpc(flag string, logger *slog.Logger) (list []grpcTarget, err error) {
	from, text := "--consul-grpc-addr", flag
	if text == "" {
		from, text = api.GRPCAddrEnvName, env(api.GRPCAddrEnvName)
	}
	if text == "" {
		return nil, nil
	}
	for _, s := range splitList(text) {
		a, err := parseAddress(s)
		if err == nil && a.scheme != "unix" {
			err = grpcHost(a)
		}
		if err != nil {
			return nil, addressError(from, text, s, err)
		}
		t, err := env.grpcTo(a, logger)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}

func grpcHost(a address) error {
	if a.path != "" {
		return fmt.Errorf("a gRPC address has no path; leave %q out", a.path)
	}
	if _, _, err := net.SplitHostPort(a.host); err != nil {
		return fmt.Errorf("the port is missing; write %s:8502", a.host)
	}
	return nil
}

func (env environment) grpcTo(a address, logger *slog.Logger) (grpcTarget, error) {
	switch a.scheme {
	case "unix":
		return grpcTarget{name: "unix:" + a.path}, nil
	case "http":
		return grpcTarget{name: "dns:///" + a.host}, nil
	}
	files, err := env.grpcEnvironment().tlsFiles(logger)
	if err != nil {
		return grpcTarget{}, err
	}
	return grpcTarget{name: "dns:///" + a.host, tls: files.current}, nil
}

// grpcEnvironment returns an environment with the certificate authorities of the gRPC port as those of the HTTP API.
func (env environment) grpcEnvironment() environment {
	file, path := env(api.GRPCCAFileEnvName), env(api.GRPCCAPathEnvName)
	return func(name string) string {
		switch {
		case file == "" && path == "":
		case name == api.HTTPCAFile:
			return file
		case name == api.HTTPCAPath:
			return path
		}
		return env(name)
	}
}
