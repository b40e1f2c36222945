package probe

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Meaning is what a conclusion means, in words.
type Meaning struct {
	Headline string   `json:"headline"`                  // one sentence
	Notes    []string `json:"notes,omitempty"`           // what else the answers show
	Without  string   `json:"without_headers,omitempty"` // what clients see through a load balancer that sends no headers
	With     string   `json:"with_headers,omitempty"`    // the same of one that sends headers
	Remedy   string   `json:"remedy,omitempty"`          // what to do
	// Setting is a part of Usher's config file, in HCL, that does what Remedy says for the gateway NAME; "" if there is none.
	Setting string `json:"setting,omitempty"`
}

// meaning says in words what was found out.
func (o *Options) meaning(r Result) Meaning {
	m := meanings(r)[r.Conclusion.Finding].orVersions(r)
	m.Notes = append(m.Notes, o.notes(r)...)
	if !r.Conclusion.canBeEnvoy() && m.Setting != "" {
		m.Remedy, m.Setting = otherServer, ""
	}
	return m
}

// canBeEnvoy reports whether nothing says that this is another server.
func (c Conclusion) canBeEnvoy() bool { return c.Envoy || !c.HTTP }

// otherServer is the remedy for what is not an Envoy.
const otherServer = "A setting of Usher does not change this server. Check that HOST:PORT is the gateway's. " +
	"In nginx, the parameter proxy_protocol of listen decides; in HAProxy, accept-proxy of bind."

// notes says what else the answers show.
func (o *Options) notes(r Result) []string {
	c := r.Conclusion
	var notes []string
	add := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	switch {
	case c.Envoy:
		add("It is an Envoy.")
	case c.Server != "":
		add("It is not an Envoy: its answers say \"%s\".", c.Server)
	case c.HTTP:
		add("Its answers do not say that it is an Envoy.")
	}
	if c.TLS && c.Mode != "" {
		add("Clients have to speak TLS. The probe did not check the certificate.")
	}
	for _, name := range c.Exceptions {
		add("It accepts other headers of this version, but not \"%s\".", name)
	}
	notFound := func(a Answer) bool { return a.byEnvoy() && a.Status == 404 && !a.Service }
	if slices.ContainsFunc(r.Answers, notFound) {
		read := ""
		if c.Finding != Off && slices.ContainsFunc(r.Answers, func(a Answer) bool { return notFound(a) && a.Sent != plain }) {
			read = " The PROXY header was read before that."
		}
		add("404 is Envoy's answer: it has no route for the host %q and the path. Set --host to a name that it serves.%s", o.host(), read)
	}
	if c.canBeEnvoy() && (c.Finding == Permissive || c.Finding == Strict) {
		notes = append(notes, o.trustNote(r))
	}
	return notes
}

// trustNote says whether the listener has used the header of this host.
func (o *Options) trustNote(r Result) string {
	switch c := r.Conclusion; {
	case c.Trust == Ignored:
		return fmt.Sprintf("The header of this host was ignored: the service got this host's address, and not %s. trusted_cidrs does not have this host.", r.Source)
	case c.Trust == Trusted, c.Finding == Strict:
		return fmt.Sprintf("It believed the header of this host, which named %s. If this host is no load balancer, set trusted_cidrs to the networks of your load balancers.", r.Source)
	case !c.HTTP:
		return fmt.Sprintf("The answers do not show whether it believed the header of this host. The access log does: the client is %s, or this host if trusted_cidrs does not have it.", r.Source)
	}
	return fmt.Sprintf("The answers do not show whether it believed the header of this host. The access log does: the client of %s is %s, or this host if trusted_cidrs does not have it.", o.UserAgent(), r.Source)
}

// addSetting says where the setting belongs.
const addSetting = "Add this to Usher's config file (--config), with the gateway's name in Consul in the place of NAME."

// What clients see.
const (
	servedAsBalancer = "Connections are served. Logs and services see the balancer as the client."
	servedAsClient   = "Connections are served. Logs and services see the client that the header names."
	closedUnserved   = "Every connection is closed without an answer."
)

// meanings returns the meaning of each finding for a result.
func meanings(r Result) map[Finding]Meaning {
	c, at := r.Conclusion, r.Address.String()
	return map[Finding]Meaning{
		Off: {
			Headline: at + " does not look for PROXY headers: its mode is off.",
			Without:  servedAsBalancer,
			With:     c.headerAsData(),
			Remedy: "If the load balancer sends headers, let the listener accept them. " + addSetting + " " +
				"The number is the port of the listener in the ingress-gateway entry. If all connections come from the balancer, change it to \"strict\" afterwards. " +
				"Consul's own xDS has no such setting: if the gateway's Envoy is not connected to Usher yet, move it first. " +
				"If this is the address of the balancer itself, probe the gateway instead.",
			Setting: modeSetting(r, c.firstMode()),
		},
		Permissive: {
			Headline: at + " accepts connections with a PROXY header" + c.ofVersions() + " and without one: its mode is permissive.",
			Without:  servedAsBalancer,
			With:     servedAsClient + c.ifTrusted() + c.otherVersion(),
			Remedy:   "If all connections come from load balancers that send headers, make it strict. " + addSetting,
			Setting:  modeSetting(r, "strict"),
		},
		Strict: {
			Headline: at + " accepts only connections with a PROXY header" + c.ofVersions() + ": its mode is strict.",
			Without:  closedUnserved,
			With:     servedAsClient + c.ifTrusted() + c.otherVersion(),
			Remedy:   "If the load balancer sends no headers, enable PROXY protocol there. Until then, make it permissive. " + addSetting,
			Setting:  modeSetting(r, "permissive"),
		},
		Untrusted: {
			Headline: at + " closes all connections of this host, with a PROXY header and without one: its mode is strict, and trusted_cidrs does not have this host.",
			Without:  closedUnserved,
			With:     "Connections of balancers in trusted_cidrs are served. Those of others are closed without an answer.",
			Remedy: "If clients see closed connections, add the balancer's networks to trusted_cidrs. To see more, run the probe on a host in trusted_cidrs. " +
				"If it is a tcp listener, use --tcp.",
		},
		ClosesLater: {
			Headline: at + " reads PROXY headers, and closes all connections of this host after it.",
			Remedy: "There are three possible reasons. Over TLS, no service has the server name that the probe sent: set --host to a name that clients use. " +
				"The mode is strict, and trusted_cidrs does not have this host: run the probe on a host in trusted_cidrs. " +
				"The listener is a tcp listener, and its service has no healthy instance: look at Consul's checks.",
		},
		AddedHeader: {
			Headline: at + " answers 400 to every request, also to one without a PROXY header.",
			Without:  servedAsBalancer,
			With:     c.headerAsData(),
			Remedy: "Something between this host and Envoy adds a PROXY header that the listener does not look for: probably this is a load balancer, and the listener behind it is off. " +
				addSetting + " The number is the port of the listener in the ingress-gateway entry. " +
				"If Consul's own xDS serves the gateway's Envoy, move it to Usher first. Then probe the gateway itself.",
			Setting: modeSetting(r, c.firstMode()),
		},
		NothingListens: {
			Headline: "Nothing listens at " + at + ".",
			Remedy: "Check the address and the port. If the ingress-gateway entry has the listener, its Envoy may not have it: " +
				"Usher's log says whether Usher holds it back or Envoy rejected it.",
		},
		NoRoute: {
			Headline: at + " cannot be reached: " + cmp.Or(detail(r.Answers), "no connection") + ".",
			Remedy:   "Check the address, and that no firewall or security group is in the way.",
		},
		ClosesAll: {
			Headline: at + " closes all connections, and nothing shows that it reads PROXY headers.",
			Remedy: "If it needs TLS, set --host to a name that it serves: Envoy closes handshakes with other names. If it is a tcp listener, use --tcp. " +
				"It may also have no healthy instance of its service. If it is a load balancer, the listener behind it may be strict, with trusted_cidrs that do not have the load balancer.",
		},
		NoTLS: {
			Headline: at + " does not speak TLS.",
			Remedy:   "Run the probe without --tls.",
		},
		Silent: {
			Headline: at + " answers nothing, with a PROXY header and without one.",
			Remedy: "If its service waits for another protocol, the mode is off: a listener that reads headers closes a connection with a broken one. " +
				"Otherwise the process hangs, or --timeout is too short. If it is a tcp listener, use --tcp.",
		},
		NoDecision: {
			Headline: at + " answers the same to connections with a PROXY header, without one and with a broken one.",
			Remedy:   "This does not show its mode. Set --host and --path to a request that is answered with 200. If it is a tcp listener, use --tcp.",
		},
		Other: {
			Headline: at + " answers in a way that fits no mode of PROXY protocol.",
			Remedy:   "Compare the answers above. If it is a tcp listener, use --tcp. If it needs TLS, use --tls.",
		},
	}
}

// headerAsData says what a header does to a listener that does not look for one.
func (c Conclusion) headerAsData() string {
	switch {
	case c.TLS:
		return "Every TLS handshake fails, because the header is not a part of one. Clients see a closed connection."
	case c.ClosesHeaders:
		return closedUnserved
	case c.HTTP && c.canBeEnvoy():
		return "Every request is answered with 400: Envoy reads the header as a broken request. This is the 400 that your clients see."
	case c.HTTP:
		return "Every request fails: the server reads the header as a broken request, and answers 400 or the like."
	}
	return "The service gets the header as the first bytes of its client."
}

// ifTrusted limits what is said about headers that are accepted.
func (c Conclusion) ifTrusted() string {
	if !c.canBeEnvoy() {
		return ""
	}
	return " If trusted_cidrs is set, this needs the balancer's address in it."
}

// firstMode returns the mode that follows off: a service that speaks first cannot be behind a permissive listener.
func (c Conclusion) firstMode() string {
	if c.SpeaksFirst {
		return "strict"
	}
	return "permissive"
}

// ofVersions names the version if there is only one.
func (c Conclusion) ofVersions() string {
	if len(c.Versions) != 1 {
		return ""
	}
	return " of version " + strings.TrimPrefix(c.Versions[0], "v")
}

// otherVersion says what happens to headers of a version that is not accepted.
func (c Conclusion) otherVersion() string {
	if len(c.Versions) != 1 {
		return ""
	}
	other := map[string]string{"v1": "2", "v2": "1"}[c.Versions[0]]
	switch {
	case c.Finding == Strict || c.TLS:
		return " With version " + other + ", the connection is closed."
	case !c.HTTP:
		return " A header of version " + other + " goes to the service as the first bytes of its client."
	}
	return " With version " + other + ", the answer is 400: the header is not one that the listener looks for. This is the 400 that your clients see."
}

// orVersions replaces the remedy if a version is not accepted.
func (m Meaning) orVersions(r Result) Meaning {
	if len(r.Conclusion.Versions) == 1 {
		m.Remedy = "If the load balancer sends the other version, accept both. " + addSetting
		m.Setting = setting(r, fmt.Sprintf(`mode = %q versions = ["v1", "v2"]`, r.Conclusion.Finding))
	}
	return m
}

func modeSetting(r Result, mode string) string { return setting(r, fmt.Sprintf("mode = %q", mode)) }

// setting returns a config file with a setting of proxy_protocol for the listener's port. It is for one gateway: others may
// have a listener on the port, too.
func setting(r Result, line string) string {
	return fmt.Sprintf("gateway \"NAME\" {\n  usher {\n    listeners {\n      \"%d\" { proxy_protocol { %s } }\n    }\n  }\n}\n", r.Address.Port(), line)
}

// detail returns the first error text in the answers.
func detail(answers []Answer) string {
	for _, a := range answers {
		if a.Detail != "" {
			return a.Detail
		}
	}
	return ""
}
