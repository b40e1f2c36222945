package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// These answers of Consul's ACLs keep a token from a gateway.
var (
	// ErrDenied means that the token lacks the right.
	ErrDenied = errors.New("the token does not have service:write on the gateway")
	// ErrUnknownToken means that the token does not exist, or no longer.
	ErrUnknownToken = errors.New("consul does not know the token")
)

// errACLsOff means that Consul checks no tokens: any token may use any gateway.
var errACLsOff = errors.New("consul's ACLs are off")

// How long one ACL check may take, including the time in the queue.
// authorizeAgainTimeout applies if Consul has allowed the same before.
const (
	authorizeTimeout      = 10 * time.Second
	authorizeAgainTimeout = 2 * time.Second
)

// Caller is an Envoy that wants to use a gateway.
type Caller struct {
	// Token is the caller's token. An empty one stands for the anonymous token (or
	// the default token of Consul's agent), never for Usher's token.
	Token string
	// Address is the caller's address. Callers from one address cannot delay those from
	// another.
	Address string
	// Again is true if the caller has the gateway already.
	Again bool
}

// aclCheck is the request of POST /v1/internal/acl/authorize, and with Allow its answer.
type aclCheck struct {
	Resource  string
	Access    string
	Segment   string
	Namespace string `json:",omitempty"`
	Partition string `json:",omitempty"`
	Allow     bool   `json:",omitempty"`
}

// authorize checks with Consul whether the token has service:write on the gateway.
// Consul requires that right of the token of every Envoy.
func (c *Client) authorize(ctx context.Context, token string, id gateway.ID) error {
	check := aclCheck{Resource: "service", Access: "write", Segment: id.Name}
	check.Namespace, check.Partition = c.tenancy(gateway.OrDefault(id.Namespace), gateway.OrDefault(id.Partition))
	body, err := json.Marshal([]aclCheck{check})
	if err != nil {
		return err
	}
	res, err := c.do(ctx, call{
		method: http.MethodPost,
		path:   "/v1/internal/acl/authorize",
		token:  gateway.Secret(token),
		body:   body,
		client: c.aclHTTP,
	})
	if err != nil {
		return authorizeError(err)
	}
	return readACLAnswer(res.body, check)
}

// isPrintable reports whether the token can be sent in a header. Consul's are UUIDs.
func isPrintable(token string) bool {
	return !strings.ContainsFunc(token, func(r rune) bool { return r < ' ' || r > '~' })
}

func authorizeError(err error) error {
	var e *callError
	if !errors.As(err, &e) {
		return err
	}
	switch {
	case e.status == http.StatusUnauthorized && strings.Contains(e.text, "ACL support disabled"):
		return errACLsOff
	case e.status == http.StatusForbidden && strings.Contains(e.text, "ACL not found"):
		return ErrUnknownToken
	}
	return err
}

// readACLAnswer returns nil if the answer allows the check.
func readACLAnswer(body []byte, check aclCheck) error {
	var answers []aclCheck
	if err := json.Unmarshal(body, &answers); err != nil {
		return fmt.Errorf("unreadable answer: %w", err)
	}
	if len(answers) != 1 {
		return fmt.Errorf("%d answers to one check", len(answers))
	}
	a := answers[0]
	if a.Resource != check.Resource || a.Access != check.Access || a.Segment != check.Segment {
		return errors.New("the answer is to another check")
	}
	if !a.Allow {
		return ErrDenied
	}
	return nil
}
