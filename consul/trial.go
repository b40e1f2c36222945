package consul

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"slices"

	"github.com/hashicorp/consul/proto-public/pbconnectca"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Permissions are what Usher's token may not do, in the words of docs/usher-policy.hcl.
type Permissions struct {
	ACLsOff  bool
	Missing  []string // without which Usher can serve no gateway
	Optional []string // that some installations do without
}

// TryToken asks Consul what Usher's token may do. An error says why Consul does not answer, or that it does not know the
// token.
func (c *Client) TryToken(ctx context.Context) (p Permissions, err error) {
	missing, err := c.missingPermissions(ctx)
	if errors.Is(err, errACLsOff) {
		return Permissions{ACLsOff: true}, nil
	}
	for _, m := range missing {
		if m.optional {
			p.Optional = append(p.Optional, m.name)
		} else {
			p.Missing = append(p.Missing, m.name)
		}
	}
	slices.Sort(p.Missing)
	return p, err
}

// TrySigning asks Consul over gRPC to sign a request for no service, which it refuses once it knows the token, and returns
// where. An error says why Consul would sign no certificate. TryToken says whether the token lacks a permission.
func (c *Client) TrySigning(ctx context.Context) (target string, err error) {
	conn, err := c.DialGRPC(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	token, err := c.tokens.current(ctx)
	if err != nil {
		return "", err
	}
	csr, err := namelessCSR()
	if err != nil {
		return "", err
	}
	_, err = pbconnectca.NewConnectCAServiceClient(conn).Sign(withToken(ctx, token), &pbconnectca.SignRequest{Csr: csr})
	if status.Code(err) == codes.InvalidArgument {
		return conn.Target(), nil
	}
	return "", signError(err, conn.Target(), string(token))
}

// namelessCSR returns a request that is valid but names no service. Consul refuses one that it cannot parse before it
// looks at the token, and this one only after that.
func namelessCSR() (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	return encodeCSR(x509.CertificateRequest{}, key)
}
