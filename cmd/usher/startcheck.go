package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/kubeapi"
)

// startCheck tries something that Usher will need.
type startCheck struct {
	name string
	// try returns what it has found: "ok…", or what is missing and what to do. An error is no answer.
	try func(ctx context.Context) (result string, err error)
	// of says whom it has asked, once it has ended; nil: the name says it.
	of func() string
}

// title returns what the table says that was tried.
func (c startCheck) title() string {
	if c.of == nil {
		return c.name
	}
	return c.of() + ": " + c.name
}

const (
	startCheckTime  = 4 * time.Second        // after which a check has failed
	startCheckPause = 500 * time.Millisecond // after an error: Consul and Usher may start at the same time
)

// startChecks write a table into the log: a line for each thing that Usher needs. Nothing waits for them.
type startChecks struct {
	log    *slog.Logger
	checks []startCheck
}

// startChecks returns those that the flags ask for. client is nil in file mode. memory is what is known of the memory limit.
func (o serveOptions) startChecks(log *slog.Logger, client *consul.Client, t transport, memory string) startChecks {
	c := startChecks{log: log}
	c.checks = append(c.checks, startCheck{name: "memory", try: func(context.Context) (string, error) { return memory, nil }})
	if client != nil {
		c.checks = append(c.checks,
			startCheck{
				name: "usher's token", of: func() string { return "consul at " + client.Address() },
				try: func(ctx context.Context) (string, error) { return tryToken(ctx, client) },
			},
			startCheck{name: "consul's gRPC port: certificates for clients", try: func(ctx context.Context) (string, error) {
				target, err := client.TrySigning(ctx)
				return "ok, at " + strings.TrimPrefix(target, "dns:///"), err
			}})
	}
	if kubernetes, err := o.connectKubernetes(); kubernetes != nil && err == nil {
		c.checks = append(c.checks, o.kubernetesChecks(kubernetes)...)
	}
	if t.keys != nil {
		c.checks = append(c.checks, startCheck{name: "usher's certificate " + o.tlsCert, try: func(context.Context) (string, error) {
			return t.keys.Describe(time.Now()), nil
		}})
	}
	return c
}

// tryToken says what Usher's token may not do.
func tryToken(ctx context.Context, client *consul.Client) (string, error) {
	p, err := client.TryToken(ctx)
	switch {
	case err != nil:
		return "", err
	case p.ACLsOff:
		return "ok, Consul has no ACLs", nil
	case len(p.Missing) > 0:
		return "it lacks " + strings.Join(p.Missing, " and ") + "; add it to the token's policy (" + consul.PolicyFile + ")", nil
	case len(p.Optional) > 0:
		return "ok, without " + strings.Join(p.Optional, ", "), nil
	}
	return "ok", nil
}

// kubernetesChecks try the rights that the flags ask for.
func (o serveOptions) kubernetesChecks(client rest.Interface) []startCheck {
	right := func(name, namespace, object, resource, group, denied string, verbs ...string) startCheck {
		return startCheck{name: name, try: func(ctx context.Context) (string, error) {
			for _, verb := range verbs {
				allowed, err := kubeapi.Allowed(ctx, client, authorizationv1.ResourceAttributes{
					Group: group, Resource: resource, Verb: verb, Namespace: namespace, Name: object,
				})
				if err != nil {
					return "", fmt.Errorf("%s", kubeapi.Explain(err, "an account"))
				}
				if !allowed {
					return fmt.Sprintf(denied, verb), nil
				}
			}
			return "ok", nil
		}}
	}
	checks := []startCheck{right("kubernetes: Services, which the mode auto follows", "", "", "services", "",
		"ok if a Role allows it in the gateways' namespaces (docs/kubernetes-role.yaml): usher may not %s all Services; problems will name what is missing",
		"get", "list", "watch")}
	if record, err := parseObjectName("", o.balancerRecord, ""); o.balancerRecord != "" && err == nil {
		checks = append(checks, right("kubernetes: --balancer-record "+o.balancerRecord, record.Namespace, record.Name, "configmaps", "",
			"usher may not %s the ConfigMap; give its account the rights in docs/kubernetes-record.yaml", "get", "update"))
	}
	if secret, err := parseObjectName("", o.reportKeySecret, ""); o.reportKeySecret != "" && err == nil {
		checks = append(checks, right("kubernetes: --connection-report-key-secret "+o.reportKeySecret, secret.Namespace, secret.Name, "secrets", "",
			"usher may not %s the Secret; give its account the rights in docs/kubernetes-report-key.yaml", "get", "update"))
	}
	if o.tokenReview {
		checks = append(checks, right("kubernetes: --token-review", "", "", "tokenreviews", "authentication.k8s.io",
			"usher may not %s tokenreviews; bind its account to the ClusterRole system:auth-delegator", "create"))
	}
	return checks
}

// run tries everything at the same time, writes the table, and waits for the end of ctx.
func (c startChecks) run(ctx context.Context) error {
	results := make([]string, len(c.checks))
	var all sync.WaitGroup
	for i, check := range c.checks {
		all.Go(func() { results[i] = check.result(ctx) })
	}
	all.Wait()
	for i, check := range c.checks {
		switch {
		case ctx.Err() != nil:
		case strings.HasPrefix(results[i], "ok"):
			c.log.Info("start check", "check", check.title(), "result", results[i])
		default:
			c.log.Warn("start check", "check", check.title(), "result", results[i])
		}
	}
	<-ctx.Done()
	return nil
}

// result tries until there is an answer, for startCheckTime at most.
func (c startCheck) result(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, startCheckTime)
	defer cancel()
	last := "no answer within " + startCheckTime.String()
	for {
		result, err := c.try(ctx)
		if err == nil {
			return result
		}
		if ctx.Err() == nil {
			last = err.Error()
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(startCheckPause):
		}
	}
}
