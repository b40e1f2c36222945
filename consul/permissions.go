package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/retry"
)

const (
	permissionInterval = time.Minute      // between two checks of what Usher's token may do
	permissionRetry    = 10 * time.Second // after one that Consul did not answer
	// maxChecks is how many ACL checks Consul takes in one request.
	maxChecks = 64
)

// PolicyFile says in messages where the policy is that Usher's token needs: packages and archives have it, too.
const PolicyFile = "usher-policy.hcl in /usr/share/usher or docs"

// permission is one that Usher's token may need (docs/usher-policy.hcl).
type permission struct {
	check   aclCheck // without a namespace or partition: in the default namespace, and Usher's partition
	name    string   // such as service:write on "edge"
	without string   // what Usher cannot do without it
	// optional is true if some installations do without it: the token has the permission for single names, or the gateway
	// is not Usher's.
	optional bool
}

// basePermissions do not depend on gateways. The empty name stands for every name: only a rule for the prefix "" matches.
var basePermissions = []permission{
	{
		check: aclCheck{Resource: "service", Access: "read"}, name: `service:read on every service (service_prefix "")`, optional: true,
		without: "Usher serves only the services that the token may read by name",
	},
	{
		check: aclCheck{Resource: "node", Access: "read"}, name: `node:read on every node (node_prefix "")`, optional: true,
		without: "Usher serves only the instances on nodes that the token may read by name",
	},
	{
		check: aclCheck{Resource: "agent", Access: "read"}, name: `agent:read (agent_prefix "")`, optional: true,
		without: "Usher assumes the DNS domain consul and the gRPC ports 8502 and 8503",
	},
	{
		check: aclCheck{Resource: "peering", Access: "read"}, name: "peering:read", optional: true,
		without: "Usher holds back ports whose services lead to cluster peers",
	},
}

// gatewayPermissions returns what Usher needs for gateways. One of them is enough: others may not be Usher's.
func gatewayPermissions(names []string) []permission {
	var list []permission
	for _, name := range names {
		list = append(list, permission{
			check: aclCheck{Resource: "service", Access: "write", Segment: name}, name: fmt.Sprintf("service:write on %q", name),
			without: "Consul issues Usher no certificates for this gateway, and Usher does not serve it",
		})
	}
	return list
}

// permissionChecker checks what Usher's token may do, at the start and from time to time.
type permissionChecker struct {
	client *Client
	serves func() bool // Envoys have a configuration from before

	mu      sync.Mutex
	missing map[string]permission // by name
}

// run checks until ctx ends.
func (p *permissionChecker) run(ctx context.Context) {
	for ctx.Err() == nil {
		pause := permissionInterval
		missing, err := p.client.missingPermissions(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errACLsOff):
			p.record(ctx, nil)
			p.report()
		case err != nil: // the watches report why Consul does not answer
			pause = permissionRetry
			if p.client.tokens.login != nil && p.client.tokens.login.failure() != nil {
				pause = time.Second
			}
		default:
			p.record(ctx, missing)
			p.report()
			if p.failure() != nil {
				pause = permissionRetry
			}
		}
		sleep(ctx, retry.Jitter(pause))
	}
}

// record logs what is missing and was not missing before.
func (p *permissionChecker) record(ctx context.Context, missing []permission) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.missing
	p.missing = map[string]permission{}
	for _, m := range missing {
		p.missing[m.name] = m
		if was, ok := before[m.name]; ok && was.optional == m.optional {
			continue
		}
		if m.optional {
			p.client.logger.InfoContext(ctx, "usher's token lacks a permission that not every installation needs ("+PolicyFile+")",
				"permission", m.name, "without_it", m.without)
			continue
		}
		p.client.logger.WarnContext(ctx, "usher's token lacks a permission; add it to the token's policy ("+PolicyFile+")",
			"permission", m.name, "without_it", m.without)
	}
}

// report reports whether Usher's token allows no gateway. Envoys keep the configuration that they have.
func (p *permissionChecker) report() {
	var problems []problem.Problem
	if err := p.failure(); err != nil {
		severity, consequence := problem.Outage, "until then Usher serves no gateway"
		if p.serves() {
			severity, consequence = problem.Degraded, "until then Envoys keep what they have, and their certificates are not renewed"
		}
		problems = append(problems, problem.Problem{
			Where: "consul at " + p.client.Address(), What: err.Error() + "; " + consequence, Severity: severity,
		})
	}
	p.client.report("permissions in consul", problems)
}

// failure returns which permissions are missing for certain, so that Consul gives Usher no certificate for any
// gateway; nil if there are none.
func (p *permissionChecker) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for name, m := range p.missing {
		if !m.optional {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return errors.New("Usher's token lacks " + strings.Join(names, " and ") + "; add it to the token's policy (" + PolicyFile + ")")
}

// missingPermissions asks Consul what Usher's token may not do.
func (c *Client) missingPermissions(ctx context.Context) ([]permission, error) {
	token, err := c.tokens.current(ctx)
	if err != nil {
		return nil, err
	}
	names, someHidden, err := c.visibleGateways(ctx)
	if err != nil {
		return nil, err
	}
	gateways := gatewayPermissions(names)
	missing, err := c.deniedOf(ctx, token, append(slices.Clone(basePermissions), gateways...))
	if err != nil {
		return nil, err
	}
	denied := 0
	for _, m := range missing {
		if m.check.Access == "write" {
			denied++
		}
	}
	for i := range missing {
		missing[i].optional = missing[i].optional || denied < len(gateways)
	}
	if len(names) == 0 && someHidden && slices.ContainsFunc(missing, func(m permission) bool { return m.check == basePermissions[0].check }) {
		missing = append(missing, permission{
			name: "service:write on any ingress gateway that has a config entry", without: "Usher sees no gateway, and serves none",
		})
	}
	return missing, nil
}

// visibleGateways returns the names of the ingress-gateway entries that Usher's token may read, and whether there are others.
func (c *Client) visibleGateways(ctx context.Context) (names []string, someHidden bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, queryTimeout, noAnswer(queryTimeout))
	defer cancel()
	q := partitionQuery(entriesType, c.partition)
	r, err := c.send(ctx, c.aclHTTP, q, 0, 0)
	if err != nil {
		return nil, false, authorizeError(err)
	}
	found, err := valueOf[entries](q, r)
	if err != nil {
		return nil, false, err
	}
	return slices.Sorted(maps.Keys(found.byName)), found.filtered, nil
}

// deniedOf returns those of the permissions that the token does not have.
func (c *Client) deniedOf(ctx context.Context, token gateway.Secret, all []permission) (denied []permission, err error) {
	for some := range slices.Chunk(all, maxChecks) {
		var checks []aclCheck
		for _, p := range some {
			check := p.check
			check.Namespace, check.Partition = c.tenancy(gateway.OrDefault(check.Namespace), gateway.OrDefault(cmp.Or(check.Partition, c.partition)))
			checks = append(checks, check)
		}
		ctx, cancel := context.WithTimeoutCause(ctx, authorizeTimeout, noAnswer(authorizeTimeout))
		results, err := c.askACLs(ctx, token, checks)
		cancel()
		if err != nil {
			return nil, err
		}
		for i, r := range results {
			if !r.Allow {
				denied = append(denied, some[i])
			}
		}
	}
	return denied, nil
}
