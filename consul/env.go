package consul

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"
)

// The address of Consul's HTTP API where none is given, as Consul's CLI has it
// (https://developer.hashicorp.com/consul/commands#consul_http_addr).
const defaultHTTPAddr = "localhost:8500"

// address is where one of Consul's ports is.
type address struct {
	scheme string // http, https or unix
	host   string // host or host:port; empty with scheme unix
	path   string // of the socket with scheme unix; else a prefix of all paths
}

// parseAddress reads the forms that Consul's CLI takes: host:port,
// http(s)://host[:port][/prefix] and unix:///path.
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
	return address{}, fmt.Errorf("scheme %q is not known; write host:port, http://, https:// or unix://", scheme)
}

func parseHost(scheme, rest, whole string) (address, error) {
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil {
		// The error of url.Parse prints the whole address, and what stands
		// before an @ in it may be a password.
		return address{}, errors.New("it is not host:port, http://, https:// or unix://")
	}
	switch {
	case u.User != nil:
		return address{}, errors.New("it must not hold a user; use " + api.HTTPAuthEnvName)
	case u.Hostname() == "":
		return address{}, errors.New("the host is missing; write host:port")
	case u.RawQuery != "" || u.Fragment != "":
		return address{}, errors.New("it must end after the host, port and path")
	case isNumber(u.Host):
		return address{}, fmt.Errorf("%q is a port alone; write localhost:%s", whole, u.Host)
	case strings.HasSuffix(u.Host, ":"):
		return address{}, errors.New("the port is missing after the colon")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return address{}, fmt.Errorf("port %q is not a number from 1 to 65535", p)
		}
	}
	return address{scheme: scheme, host: u.Host, path: strings.TrimRight(u.Path, "/")}, nil
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 64)
	return err == nil
}

// String gives the address as an operator writes it.
func (a address) String() string { return a.scheme + "://" + a.host + a.path }

// environment reads Consul's environment variables
// (https://developer.hashicorp.com/consul/commands#environment-variables).
type environment func(string) string

// httpAddress gives the address of the HTTP API. CONSUL_HTTP_SSL turns http
// into https, and a unix socket stays what it is.
func (env environment) httpAddress(flag string) (address, error) {
	from, s := "address of consul", flag
	if s == "" {
		from, s = api.HTTPAddrEnvName, env(api.HTTPAddrEnvName)
	}
	if s == "" {
		s = defaultHTTPAddr
	}
	a, err := parseAddress(s)
	if err != nil {
		return address{}, fmt.Errorf("%s %q: %w", from, withoutUser(s), err)
	}
	ssl, err := env.bool(api.HTTPSSLEnvName, false)
	if err != nil {
		return address{}, err
	}
	if ssl && a.scheme == "http" {
		a.scheme = "https"
	}
	return a, nil
}

// withoutUser hides what stands before an @, which may be a password.
func withoutUser(s string) string {
	if at := strings.LastIndex(s, "@"); at >= 0 {
		return "…" + s[at:]
	}
	return s
}

// tls gives the TLS settings towards Consul's HTTP API.
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
		return nil, fmt.Errorf("TLS towards consul (%s, %s, %s, %s): %w",
			api.HTTPCAFile, api.HTTPCAPath, api.HTTPClientCert, api.HTTPClientKey, err)
	}
	return config, nil
}

// auth gives the user and password of HTTP basic authentication, nil for none.
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
		return false, fmt.Errorf("%s %q: it is neither true nor false", name, s)
	}
	return b, nil
}
