package consul

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"

	"github.com/hashicorp/consul/api"
)

// GRPC says how to reach Consul's gRPC port. The zero value means that no
// address was given.
type GRPC struct {
	// Target is what a gRPC client dials: dns:///host:port or unix:///path.
	Target string
	// TLS returns the settings for a new connection. It is nil for plaintext.
	TLS func() *tls.Config
}

// grpc gives the place of the gRPC port: the given address, else
// CONSUL_GRPC_ADDR. Its certificate authorities are CONSUL_GRPC_CACERT and
// CONSUL_GRPC_CAPATH, and without these the ones of the HTTP API; all other TLS
// settings are those of the HTTP API.
func (env environment) grpc(flag string, logger *slog.Logger) (GRPC, error) {
	from, s := "gRPC address of consul", flag
	if s == "" {
		from, s = api.GRPCAddrEnvName, env(api.GRPCAddrEnvName)
	}
	if s == "" {
		return GRPC{}, nil
	}
	a, err := parseAddress(s)
	if err == nil && a.scheme != "unix" {
		err = grpcHost(a)
	}
	if err != nil {
		return GRPC{}, fmt.Errorf("%s %q: %w", from, withoutUser(s), err)
	}
	return env.grpcTo(a, logger)
}

func grpcHost(a address) error {
	if a.path != "" {
		return fmt.Errorf("a gRPC address has no path %q", a.path)
	}
	if _, _, err := net.SplitHostPort(a.host); err != nil {
		return fmt.Errorf("the port is missing; write %s:8502", a.host)
	}
	return nil
}

func (env environment) grpcTo(a address, logger *slog.Logger) (GRPC, error) {
	switch a.scheme {
	case "unix":
		return GRPC{Target: "unix:" + a.path}, nil
	case "http":
		return GRPC{Target: "dns:///" + a.host}, nil
	}
	files, err := env.grpcEnvironment().tlsFiles(logger)
	if err != nil {
		return GRPC{}, err
	}
	return GRPC{Target: "dns:///" + a.host, TLS: files.current}, nil
}

// grpcEnvironment is the environment in which the variables of the gRPC
// certificate authorities stand for those of the HTTP API.
func (env environment) grpcEnvironment() environment {
	file, path := env(api.GRPCCAFileEnvName), env(api.GRPCCAPathEnvName)
	if file == "" && path == "" {
		return env
	}
	return func(name string) string {
		switch name {
		case api.HTTPCAFile:
			return file
		case api.HTTPCAPath:
			return path
		}
		return env(name)
	}
}
