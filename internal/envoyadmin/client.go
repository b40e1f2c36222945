// Package envoyadmin asks the admin interface of an Envoy
// (https://www.envoyproxy.io/docs/envoy/latest/operations/admin).
package envoyadmin

import (
	"context"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/usherproxy/usher/internal/adminport"
)

// Client asks one Envoy.
type Client struct{ adminport.Client }

// New returns a client of the admin interface at an address, such as 127.0.0.1:19000, or at a URL.
func New(address string) Client { return Client{adminport.New(address, adminport.Envoy)} }

// ServerInfo is what an Envoy says about itself.
type ServerInfo struct {
	Version string // such as "commit/1.40.0/Clean/RELEASE/BoringSSL"
	State   string // "LIVE", "DRAINING", "PRE_INITIALIZING" or "INITIALIZING"
	Node    *corev3.Node
}

// Release returns the release, such as "1.40.0"; "" if the version does not have it.
func (i ServerInfo) Release() string {
	if parts := strings.Split(i.Version, "/"); len(parts) > 1 {
		return parts[1]
	}
	return ""
}

// ServerInfo asks the Envoy what it is.
func (c Client) ServerInfo(ctx context.Context) (ServerInfo, error) {
	var answer struct {
		Version, State string
		Node           node
	}
	answer.Node.Node = &corev3.Node{}
	err := c.GetJSON(ctx, "/server_info", &answer)
	return ServerInfo{answer.Version, answer.State, answer.Node.Node}, err
}

// node is a node in JSON, also one of an Envoy that is newer than this Usher.
type node struct{ *corev3.Node }

// UnmarshalJSON implements json.Unmarshaler.
func (n node) UnmarshalJSON(text []byte) error {
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(text, n.Node)
}
