package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// The answers of Consul's ACLs that keep a gateway from a token.
var (
	// ErrDenied says that they know the token and do not let it have the gateway.
	ErrDenied = errors.New("the token does not have service:write on the gateway")
	// ErrUnknownToken says that they do not know the token, or no longer.
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

// Caller is a caller that asks for a gateway.
type Caller struct {
	// Token is the caller's token. An empty one stands for the anonymous token (or
	// the default token of Consul's agent), never for Usher's token.
	Token string
	// Peer is the caller's address. Callers of one peer cannot delay those of another.
	Address string
	// Again is true if the caller has the gateway already.
	Again bool
}

// question and verdict are the request and the answer of
// POST /v1/internal/acl/authorize.
type aclCheck struct {
	Resource  string
	Access    string
	Segment   string
	Namespace string `json:",omitempty"`
	Partition string `json:",omitempty"`
}

type aclAnswer struct {
	Resource string
	Access   string
	Segment  string
	Allow    bool
}

// authorize asks Consul whether the token has service:write on the gateway. Consul
// requires that right of the token of every Envoy.
func (c *Client) authorize(ctx context.Context, token string, id gateway.ID) error {
	ask := aclCheck{Resource: "service", Access: "write", Segment: id.Name}
	ask.Namespace, ask.Partition = c.tenancy(gateway.OrDefault(id.Namespace), gateway.OrDefault(id.Partition))
	body, err := json.Marshal([]aclCheck{ask})
	if err != nil {
		return err
	}
	res, err := c.do(ctx, call{
		method: http.MethodPost,
		path:   "/v1/internal/acl/authorize",
		params: url.Values{},
		token:  gateway.Secret(token),
		body:   body,
		client: c.aclHTTP,
	})
	if err != nil {
		return authorizeError(err)
	}
	return readACLAnswer(res.body, ask)
}

// isToken says whether the token can be sent at all. Consul's are UUIDs.
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

// decide reads the answer; one that is not to the question asked allows nothing.
func readACLAnswer(body []byte, ask aclCheck) error {
	var answers []aclAnswer
	if err := json.Unmarshal(body, &answers); err != nil {
		return fmt.Errorf("unreadable answer: %w", err)
	}
	if len(answers) != 1 {
		return fmt.Errorf("%d answers to one question", len(answers))
	}
	a := answers[0]
	if a.Resource != ask.Resource || a.Access != ask.Access || a.Segment != ask.Segment {
		return errors.New("the answer is to another question")
	}
	if !a.Allow {
		return ErrDenied
	}
	return nil
}
