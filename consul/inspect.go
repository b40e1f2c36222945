package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
)

// TokenState says what Consul knows about Usher's token.
type TokenState string

// The states of a token.
const (
	TokenUnchecked TokenState = "unchecked" // Consul's ACLs are off
	TokenMissing   TokenState = "missing"   // there is no token, and ACLs are on
	TokenUnknown   TokenState = "unknown"   // Consul does not know the token
	TokenKnown     TokenState = "known"
)

// Inspection is what Consul says at one moment about itself, about Usher's token and about a gateway. It has no secrets.
type Inspection struct {
	Version  string // of the agent; empty if the token may not read it
	Token    TokenState
	Accessor string // the accessor ID of a known token
	// Missing is what the token lacks of docs/usher-policy.hcl for the gateway.
	Missing []MissingPermission
	// Gateways are the names of the ingress-gateway entries that the token may read. Hidden says that there are others.
	Gateways []string
	Hidden   bool
	// Entry is the gateway's; nil if there is none, or if it is hidden.
	Entry *gateway.Entry
	// Instances are the registered ones of the gateway, without those that ACLs hide.
	Instances []RegisteredInstance
}

// MissingPermission is one that Usher's token lacks.
type MissingPermission struct {
	Name    string // such as service:write on "edge"
	Without string // what Usher cannot do without it
	Rule    string // the rule of an ACL policy that gives it, in HCL, in a block of the gateway's namespace and partition
	// Optional is true if the token has what this gateway needs by single names.
	Optional bool
}

// RegisteredInstance is an instance of a gateway in Consul's catalog.
type RegisteredInstance struct {
	Node, ServiceID string
	Critical        []string // the names of the checks that are critical
}

var inspectedAgentType = &queryType{
	name: "agent-version", path: "/v1/agent/self", local: true,
	decode: decodeJSON("agent", func(_ *string, body struct{ Config struct{ Version string } }, _ response) (*string, error) {
		return &body.Config.Version, nil
	}),
}

var ownTokenType = &queryType{
	name: "own-token", path: "/v1/acl/token/self", local: true,
	decode: decodeJSON("token", func(_ *string, body struct{ AccessorID string }, _ response) (*string, error) {
		return &body.AccessorID, nil
	}),
}

// inspectedInstance is a registered instance with its checks.
type inspectedInstance struct {
	Node    struct{ Node string }
	Service struct{ ID, Kind string }
	Checks  []struct{ Name, Status string }
}

type inspectedInstances struct {
	list     []RegisteredInstance
	filtered bool
}

var inspectedInstancesType = &queryType{
	name: "registered-instances", path: "/v1/health/service/", needs: "service:read on the gateway and node:read",
	decode: decodeList("instances", func(_ *inspectedInstances, list []*inspectedInstance, r response) (*inspectedInstances, error) {
		found := &inspectedInstances{filtered: r.filtered}
		for _, in := range list {
			if in.Service.Kind != ingressGatewayKind {
				continue
			}
			one := RegisteredInstance{Node: in.Node.Node, ServiceID: in.Service.ID}
			for _, check := range in.Checks {
				if check.Status == "critical" {
					one.Critical = append(one.Critical, check.Name)
				}
			}
			found.list = append(found.list, one)
		}
		slices.SortFunc(found.list, func(a, b RegisteredInstance) int {
			return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.ServiceID, b.ServiceID))
		})
		return found, nil
	}),
}

// Inspect asks Consul about itself, about Usher's token and about a gateway. If the gateway has no name and there is one
// ingress-gateway entry, it is that one: the Inspection's Entry says which. The error says why Consul does not answer.
func (c *Client) Inspect(ctx context.Context, id gateway.ID) (*Inspection, error) {
	token, err := c.tokens.current(ctx)
	if err != nil {
		return nil, err
	}
	in := &Inspection{}
	id.Partition = cmp.Or(id.Partition, c.partition)
	if err := c.inspectToken(ctx, in, token); err != nil || in.Token == TokenUnknown {
		return in, err
	}
	if version, err := inspect[string](ctx, c, query{queryType: inspectedAgentType}); err == nil {
		in.Version = *version
	}
	found, err := inspect[entries](ctx, c, serviceQuery(entriesType, gateway.ServiceName{Namespace: id.Namespace, Partition: id.Partition}))
	if err != nil && outcomeOf(err) != outcomeDenied {
		return nil, err
	}
	if err == nil {
		in.Gateways, in.Hidden = slices.Sorted(maps.Keys(found.byName)), found.filtered
		if id.Name == "" && len(in.Gateways) == 1 && !in.Hidden {
			id.Name = in.Gateways[0]
		}
		in.Entry = found.byName[id.Name]
	}
	in.Hidden = in.Hidden || err != nil
	if id.Name == "" {
		return in, nil
	}
	instancesHidden, err := c.inspectInstances(ctx, in, id)
	if err == nil && in.Token != TokenUnchecked {
		err = c.inspectPermissions(ctx, in, token, id, instancesHidden)
	}
	return in, err
}

// inspect asks once.
func inspect[V any](ctx context.Context, c *Client, q query) (*V, error) {
	r, err := c.query(ctx, q, 0, 0)
	if err != nil {
		return nil, err
	}
	return valueOf[V](q, r)
}

// inspectToken finds out what Consul knows about the token.
func (c *Client) inspectToken(ctx context.Context, in *Inspection, token gateway.Secret) error {
	_, err := c.askACLs(ctx, token, []aclCheck{basePermissions[0].check})
	switch {
	case errors.Is(err, errACLsOff):
		in.Token = TokenUnchecked
		return nil
	case errors.Is(err, ErrUnknownToken):
		in.Token = TokenUnknown
		return nil
	case err != nil:
		return err
	case token == "":
		in.Token = TokenMissing
		return nil
	}
	in.Token = TokenKnown
	if accessor, err := inspect[string](ctx, c, query{queryType: ownTokenType}); err == nil {
		in.Accessor = *accessor
	}
	return nil
}

// inspectInstances reads the instances of the gateway. It reports whether ACLs may hide some.
func (c *Client) inspectInstances(ctx context.Context, in *Inspection, id gateway.ID) (hidden bool, err error) {
	found, err := inspect[inspectedInstances](ctx, c, serviceQuery(inspectedInstancesType, gateway.ServiceName(id)))
	e, ok := errors.AsType[*callError](err)
	switch {
	case err == nil:
		in.Instances = found.list
		return found.filtered, nil
	case errors.Is(err, errNoLeader), ok && e.status == http.StatusForbidden: // Consul 1.15 answers a refusal like a missing leader
		return true, nil
	}
	return false, err
}

// inspectPermissions finds out what the token lacks for the gateway.
func (c *Client) inspectPermissions(ctx context.Context, in *Inspection, token gateway.Secret, id gateway.ID, instancesHidden bool) error {
	all := append(gatewayPermissions([]string{id.Name}), basePermissions[:2]...)
	for i := range all {
		all[i].check.Namespace, all[i].check.Partition = id.Namespace, id.Partition
	}
	denied, err := c.deniedOf(ctx, token, all)
	if err != nil {
		return err
	}
	byName := true // the token may read all services of the entry
	if in.Entry == nil {
		byName = false
	} else if names := servicesByName(id, in.Entry); len(names) > 0 {
		unreadable, err := c.deniedOf(ctx, token, names)
		if err != nil {
			return err
		}
		byName = len(unreadable) == 0
	}
	for _, p := range denied {
		m := MissingPermission{Name: p.name, Without: p.without}
		switch p.check.Resource + " " + p.check.Access {
		case "service write":
			m.Rule = ruleIn(id, fmt.Sprintf("service %q", p.check.Segment), "write")
		case "service read":
			m.Rule, m.Optional = ruleIn(id, `service_prefix ""`, "read"), byName
		case "node read":
			m.Rule, m.Optional = ruleIn(id, `node_prefix ""`, "read"), !instancesHidden && len(in.Instances) > 0
		}
		in.Missing = append(in.Missing, m)
	}
	return nil
}

// ruleIn returns the rule of an ACL policy that gives access to a resource in a gateway's namespace and partition.
func ruleIn(id gateway.ID, resource, access string) string {
	rule := block(resource, fmt.Sprintf("policy = %q\n", access))
	if gateway.OmitDefault(id.Namespace) != "" {
		rule = block(fmt.Sprintf("namespace %q", id.Namespace), rule)
	}
	if gateway.OmitDefault(id.Partition) != "" {
		rule = block(fmt.Sprintf("partition %q", id.Partition), rule)
	}
	return rule
}

// block returns a block of HCL.
func block(head, lines string) string {
	return head + " {\n  " + strings.ReplaceAll(strings.TrimSuffix(lines, "\n"), "\n", "\n  ") + "\n}\n"
}

// servicesByName are the permissions to read the services that the entry of a gateway names.
func servicesByName(id gateway.ID, e *gateway.Entry) []permission {
	var all []permission
	seen := map[gateway.ServiceName]bool{}
	for _, l := range e.Listeners {
		for _, s := range l.Services {
			name := gateway.ServiceName{Name: s.Name, Namespace: cmp.Or(s.Namespace, id.Namespace), Partition: cmp.Or(s.Partition, id.Partition)}
			if s.Name == "*" || seen[name] {
				continue
			}
			seen[name] = true
			all = append(all, permission{check: aclCheck{
				Resource: "service", Access: "read", Segment: name.Name, Namespace: name.Namespace, Partition: name.Partition,
			}})
		}
	}
	return all
}
