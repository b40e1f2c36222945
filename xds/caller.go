package xds

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/netip"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Caller opens a stream.
type Caller struct {
	Credential Credential
	Address    netip.Addr           // the client's; zero for a unix socket
	Network    netip.Prefix         // what Limits count as one caller
	TLS        *tls.ConnectionState // nil for plain text
	Again      bool                 // the stream was authorized before
}

// Credential is what a stream's metadata has to prove who its caller is: one of the two, or none. Formatting it shows
// only which.
type Credential struct {
	Token  Token  // of x-consul-token
	Bearer Bearer // of authorization
}

// String never returns a secret.
func (c Credential) String() string {
	if c.Bearer != "" {
		return c.Bearer.String()
	}
	return c.Token.String()
}

// GoString never returns a secret.
func (c Credential) GoString() string { return c.String() }

// LogValue never returns a secret.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Token is a secret that the Authorizer checks: a token of Consul's ACLs. Formatting it shows only whether there is one;
// convert it to a string to use it.
type Token string

// String never returns the token.
func (t Token) String() string {
	if t == "" {
		return "no token"
	}
	return "a token"
}

// GoString never returns the token.
func (t Token) GoString() string { return t.String() }

// LogValue never returns the token.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText never returns the token.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// Bearer is a secret that the Authorizer checks: a bearer token (RFC 6750), such as the JWT of a service account in
// Kubernetes. Formatting it shows only whether there is one; convert it to a string to use it.
type Bearer string

// String never returns the token.
func (b Bearer) String() string {
	if b == "" {
		return "no bearer token"
	}
	return "a bearer token"
}

// GoString never returns the token.
func (b Bearer) GoString() string { return b.String() }

// LogValue never returns the token.
func (b Bearer) LogValue() slog.Value { return slog.StringValue(b.String()) }

// MarshalText never returns the token.
func (b Bearer) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// The metadata keys of the credentials. Consul's bootstraps send an ACL token, and Envoy's
// envoy.grpc_credentials.file_based_metadata sends a bearer token.
const (
	tokenKey  = "x-consul-token"
	bearerKey = "authorization"
)

// callerOf returns the caller of a stream. An error is a status.
func callerOf(ctx context.Context) (Caller, *connection, error) {
	p, _ := peer.FromContext(ctx)
	auth := p.AuthInfo.(authInfo) // from countingCredentials
	c := Caller{Address: auth.conn.address, Network: NetworkOf(auth.conn.address)}
	if info, ok := auth.AuthInfo.(credentials.TLSInfo); ok {
		c.TLS = &info.State
	}
	var err error
	c.Credential, err = credentialOf(ctx)
	return c, auth.conn, err
}

// credentialOf returns the credential in a stream's metadata. An error is a status that does not repeat any of it.
func credentialOf(ctx context.Context) (c Credential, err error) {
	token, bearer := firstOf(ctx, tokenKey), firstOf(ctx, bearerKey)
	c.Token = Token(token)
	switch {
	case len(token) > maxToken:
		return c, tooLong(tokenKey)
	case bearer == "":
		return c, nil
	}
	scheme, secret, _ := strings.Cut(bearer, " ")
	c.Bearer = Bearer(strings.TrimSpace(secret))
	switch {
	case len(bearer) > maxToken:
		return c, tooLong(bearerKey)
	case token != "":
		return c, status.Errorf(codes.Unauthenticated,
			"the stream's metadata has both %s and %s; send only one of them", tokenKey, bearerKey)
	case !strings.EqualFold(scheme, "Bearer") || c.Bearer == "":
		return c, status.Errorf(codes.Unauthenticated, `the metadata %s is not "Bearer TOKEN"; send a bearer token, or %s`, bearerKey, tokenKey)
	}
	return c, nil
}

func firstOf(ctx context.Context, key string) string {
	if values := metadata.ValueFromIncomingContext(ctx, key); len(values) > 0 {
		return values[0]
	}
	return ""
}

func tooLong(key string) error {
	return status.Errorf(codes.Unauthenticated, "the metadata %s has more than %d bytes", key, maxToken)
}
