package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// checkGateway says whether Consul has the gateway.
func checkGateway(f *Facts, r *Report) {
	const check = "gateway"
	c := f.Consul.Facts
	switch {
	case c == nil || c.Token == consul.TokenUnknown:
	case f.Gateway.Name == "" && len(c.Gateways) > 0:
		r.add(Finding{
			Check: check, Severity: problem.Notice, What: "Consul has several ingress gateways, and doctor looks at one.",
			Evidence: []string{entriesOf(c)}, Remedy: Remedy{Text: "Name it with --gateway."},
		})
	case f.Gateway.Name == "" && !c.Hidden:
		r.add(Finding{
			Check: check, Severity: problem.Outage, What: "Consul has no ingress-gateway entry.", Evidence: []string{entriesOf(c)},
			Remedy: Remedy{Text: "Write one with \"consul config write\", or check that this is the right Consul."},
		})
	case c.Entry == nil && c.Hidden: // checkToken says what is missing
	case c.Entry == nil:
		r.add(f.noEntry(check, c))
	case f.Port != 0 && !slices.ContainsFunc(c.Entry.Listeners, func(l gateway.Listener) bool { return l.Port == f.Port }):
		r.add(Finding{
			Check: check, Severity: problem.Notice,
			What:     fmt.Sprintf("The ingress-gateway entry %q has no listener on port %d.", f.Gateway, f.Port),
			Evidence: []string{fmt.Sprintf("its ports are %s", portsOf(c.Entry))},
			Remedy:   Remedy{Text: "Give usher doctor the port of the gateway itself, and not one of a Service or a load balancer; or add the listener to the entry."},
		})
	default:
		r.fine(check, fmt.Sprintf("Consul has the ingress-gateway entry %q, with the ports %s", f.Gateway, portsOf(c.Entry)))
	}
}

// noEntry is the finding that the gateway has no entry.
func (f *Facts) noEntry(check string, c *consul.Inspection) Finding {
	name := f.Gateway.String()
	found := Finding{
		Check: check, Severity: problem.Outage,
		What:     fmt.Sprintf("Consul has no ingress-gateway entry %q%s.", name, problem.DidYouMean(f.Gateway.Name, c.Gateways)),
		Evidence: []string{entriesOf(c), fmt.Sprintf("%d instances of an ingress gateway are registered as %q", len(c.Instances), name)},
		Remedy:   Remedy{Text: "Write the entry with \"consul config write\", or correct the name."},
	}
	near := f.Gateway
	nearest, ok := problem.Nearest(near.Name, c.Gateways)
	near.Name = nearest
	switch {
	case ok && len(c.Instances) == 0:
		found.Remedy = Remedy{Text: "Use the right name.", Command: "usher doctor --gateway " + quoteForShell(near.String()) + f.target()}
	case ok:
		found.Remedy = Remedy{
			Text:    fmt.Sprintf("The instances are registered with the misspelt name. Register them as %q: start their Envoys again, each on its host.", near.Name),
			Command: registerCommand(near),
		}
	}
	return found
}

// target is the argument for the listener, after a space.
func (f *Facts) target() string {
	if f.Listener.Facts == nil {
		return ""
	}
	return " " + quoteForShell(f.Listener.Facts.Target)
}

// registerCommand registers an instance and starts its Envoy.
func registerCommand(id gateway.ID) string {
	return "consul connect envoy -gateway=ingress -register" + tenancy(id) + " -service " + quoteForShell(id.Name) + " -address '{{ GetPrivateIP }}:8888' -grpc-addr http://127.0.0.1:18000"
}

// tenancy are the flags of Consul's commands for the gateway's partition and namespace, each after a space; Consul without
// Enterprise has none of them.
func tenancy(id gateway.ID) (flags string) {
	if id.Partition != "" {
		flags += " -partition " + quoteForShell(id.Partition)
	}
	if id.Namespace != "" {
		flags += " -namespace " + quoteForShell(id.Namespace)
	}
	return flags
}

func entriesOf(c *consul.Inspection) string {
	if len(c.Gateways) == 0 {
		return "Consul has no ingress-gateway entries that this token may read"
	}
	return "the ingress-gateway entries are " + quoted(c.Gateways)
}

// quoted joins names, each in quotes.
func quoted(names []string) string {
	var all []string
	for _, name := range names {
		all = append(all, fmt.Sprintf("%q", name))
	}
	return strings.Join(all, ", ")
}

func portsOf(e *gateway.Entry) string {
	var ports []string
	for _, l := range e.Listeners {
		ports = append(ports, fmt.Sprint(l.Port))
	}
	return strings.Join(ports, ", ")
}

// checkInstances says whether instances of the gateway are registered, and healthy.
func checkInstances(f *Facts, r *Report) {
	const check = "instances"
	c := f.Consul.Facts
	if c == nil || c.Entry == nil || f.instancesHidden() {
		return
	}
	if len(c.Instances) == 0 {
		r.add(Finding{
			Check: check, Severity: problem.Outage,
			What:   fmt.Sprintf("No instance of gateway %q is registered, so Usher serves no Envoy of it.", f.Gateway),
			Remedy: Remedy{Text: "Register one, on its host.", Command: registerCommand(f.Gateway)},
		})
		return
	}
	bad := 0
	for _, in := range c.Instances {
		if len(in.Critical) > 0 {
			bad++
			r.add(Finding{
				Check: check, Severity: problem.Notice,
				What:     fmt.Sprintf("Consul's check of instance %q of gateway %q on node %q is critical.", in.ServiceID, f.Gateway, in.Node),
				Evidence: []string{"the checks that are critical: " + quoted(in.Critical)},
				Remedy:   Remedy{Text: "Usher serves the instance anyway, and a new instance is critical until Consul has checked it. If this lasts, check on the gateway's host that the Envoy runs.", Command: "curl " + f.EnvoyAdmin + "/ready"},
			})
		}
	}
	if bad == 0 {
		r.fine(check, fmt.Sprintf("registered instances of gateway %q: %d, and none is critical", f.Gateway, len(c.Instances)))
	}
}

// instancesHidden reports whether the token may not read the instances.
func (f *Facts) instancesHidden() bool {
	return slices.ContainsFunc(f.Consul.Facts.Missing, func(m consul.MissingPermission) bool { return !m.Optional }) && len(f.Consul.Facts.Instances) == 0
}

// checkToken says whether Usher's token suffices.
func checkToken(f *Facts, r *Report) {
	const check = "token"
	c := f.Consul.Facts
	if c == nil {
		return
	}
	switch c.Token {
	case consul.TokenUnchecked:
		r.fine(check, "Consul's ACLs are off, so Usher needs no token")
	case consul.TokenMissing:
		r.add(Finding{
			Check: check, Severity: f.tokenSeverity(), What: "Consul's ACLs are on, and there is no token.",
			Evidence: []string{"CONSUL_HTTP_TOKEN and CONSUL_HTTP_TOKEN_FILE are empty"},
			Remedy:   f.newToken("If Usher has a token, run usher doctor with it. Otherwise create one, and give it to Usher in CONSUL_HTTP_TOKEN."),
		})
	case consul.TokenUnknown:
		r.add(Finding{
			Check: check, Severity: f.tokenSeverity(), What: "Consul does not know the token.",
			Evidence: []string{"Consul answers 403 ACL not found"},
			Remedy:   f.newToken("Give Usher a token that this Consul knows. You can create one."),
		})
	case consul.TokenKnown:
		f.addMissing(check, r)
	}
}

// tokenSeverity is how bad a bad token is: nothing, as far as a running Usher is concerned that has a better one.
func (f *Facts) tokenSeverity() problem.Severity {
	if u := f.Usher.Facts; u != nil && u.Usher.Ready && u.Source.Answers {
		return problem.Notice
	}
	return problem.Outage
}

// policy is the one of docs/usher-policy.hcl for a gateway.
const policy = "service %q {\n  policy = \"write\"\n}\nservice_prefix \"\" {\n  policy = \"read\"\n}\nnode_prefix \"\" {\n  policy = \"read\"\n}\n"

// newToken is the remedy that creates a token for Usher.
func (f *Facts) newToken(text string) Remedy {
	return Remedy{
		Text:    text + " The commands need a token with acl:write, and the output of the second one has the new token.",
		Command: f.createToken(),
	}
}

// createToken are the commands for a token with Usher's policy.
func (f *Facts) createToken() string {
	name := "usher-" + f.gatewayName()
	return f.createPolicy(name, fmt.Sprintf(policy, f.gatewayName())) + "\nconsul acl token create" + tenancy(f.Gateway) + " -description usher -policy-name " + quoteForShell(name)
}

// createPolicy is the command for a policy with rules in HCL.
func (f *Facts) createPolicy(name, rules string) string {
	return "consul acl policy create" + tenancy(f.Gateway) + " -name " + quoteForShell(name) + " -rules - <<'EOF'\n" + rules + "EOF"
}

// addMissing adds what the token lacks.
func (f *Facts) addMissing(check string, r *Report) {
	c := f.Consul.Facts
	var evidence []string
	rules, severity := "", problem.Notice
	for _, m := range c.Missing {
		evidence = append(evidence, "it lacks "+m.Name+": "+m.Without)
		rules += m.Rule
		if !m.Optional {
			severity = f.tokenSeverity()
		}
	}
	if len(c.Missing) == 0 {
		r.fine(check, fmt.Sprintf("Consul knows the token, and it has what Usher needs for gateway %q", f.gatewayName()))
		return
	}
	name := "usher-" + f.gatewayName() + "-more"
	found := Finding{
		Check: check, Severity: severity, What: fmt.Sprintf("The token lacks permissions that Usher needs for gateway %q.", f.gatewayName()), Evidence: evidence,
		Remedy: Remedy{Text: "Add them. The commands need a token with acl:write. The whole policy is " + consul.PolicyFile + ".", Command: f.createPolicy(name, rules)},
	}
	if severity == problem.Notice {
		found.What = fmt.Sprintf("The token has permissions for single names; Usher sees nothing else for gateway %q.", f.gatewayName())
		found.Remedy.Text = "Nothing, if this is meant. Otherwise add them. " + strings.TrimPrefix(found.Remedy.Text, "Add them. ")
	}
	if c.Accessor != "" {
		found.Remedy.Command += "\nconsul acl token update" + tenancy(f.Gateway) + " -accessor-id " + quoteForShell(c.Accessor) + " -append-policy-name " + quoteForShell(name)
	}
	r.add(found)
}
