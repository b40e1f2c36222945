package probe

import "slices"

// Finding is what a listener turns out to be.
type Finding string

// The findings. Off, Permissive and Strict are the modes of the setting usher.proxy_protocol.mode, also of a server that
// is not Envoy.
const (
	Off        Finding = "off"        // it does not look for PROXY headers
	Permissive Finding = "permissive" // it serves connections with a header and without one
	Strict     Finding = "strict"     // it serves connections with a header only
	// Untrusted is an http listener in mode strict whose trusted_cidrs do not have this host.
	Untrusted Finding = "strict, not for this host"
	// ClosesLater reads headers and then closes every connection: the mode is strict and trusted_cidrs do not have this
	// host, or no service has the server name of the TLS handshake, or the tcp service has no healthy instance.
	ClosesLater Finding = "reads headers and closes"
	// AddedHeader is an Envoy that cannot read any request, also one without a header: something between the probe and
	// Envoy adds one.
	AddedHeader    Finding = "400 to all"
	NothingListens Finding = "nothing listens"
	NoRoute        Finding = "not reachable"
	ClosesAll      Finding = "closes"        // it closes every connection, and nothing shows that it reads headers
	NoTLS          Finding = "no TLS"        // it does not speak TLS
	Silent         Finding = "silent"        // it answers nothing
	NoDecision     Finding = "no difference" // the answers are the same, and fit more than one mode
	Other          Finding = "other"         // the answers fit no mode
)

// known reports whether the finding says which mode the listener has.
func (f Finding) known() bool { return f.Mode() != "" }

// Mode returns the value of usher.proxy_protocol.mode that the finding has; "" if it is not known.
func (f Finding) Mode() string {
	switch f {
	case Off, Permissive, Strict:
		return string(f)
	case Untrusted:
		return string(Strict)
	}
	return ""
}

// Trust says whether the listener uses the header of this host.
type Trust string

// The values of Trust.
const (
	TrustUnknown Trust = ""        // the answers do not show it
	Trusted      Trust = "trusted" // the service sees the client that the header names
	Ignored      Trust = "ignored" // the service sees this host
)

// Conclusion is what the answers say about a listener.
type Conclusion struct {
	Finding  Finding  `json:"finding"`
	Mode     string   `json:"mode,omitempty"`     // off, permissive or strict; "" if it is not known
	TLS      bool     `json:"tls"`                // clients have to speak TLS
	HTTP     bool     `json:"http"`               // it answers HTTP
	Envoy    bool     `json:"envoy"`              // an answer says that it is an Envoy
	Server   string   `json:"server,omitempty"`   // what answers, if it is not an Envoy and says so
	Versions []string `json:"versions,omitempty"` // of PROXY protocol that it accepts: v1, v2
	Trust    Trust    `json:"trust,omitempty"`
	// Exceptions are the headers that it treats differently from others of the same version.
	Exceptions  []string `json:"exceptions,omitempty"`
	SpeaksFirst bool     `json:"speaks_first,omitempty"` // the service sends the first bytes
	// ClosesHeaders says that connections with a header are closed without an answer, although the mode is off.
	ClosesHeaders bool `json:"closes_headers,omitempty"`
}

// mayNeedTLS reports whether TLS could show more: nothing is served, or all that is served is the 400 by which some
// servers tell HTTP clients to use TLS.
func mayNeedTLS(c Conclusion, answers []Answer) bool {
	if c.Finding == NothingListens || c.Finding == NoRoute {
		return false
	}
	served := slices.ContainsFunc(answers, func(x Answer) bool {
		return x.Reaction == Data || x.Reaction == HTTP && (x.Status != 400 || x.Service)
	})
	return !c.Finding.known() || c.HTTP && !served
}

// conclude derives a conclusion from the answers of one round. It is a pure function.
func conclude(answers []Answer) Conclusion {
	a := evidence{}
	for _, answer := range answers {
		a[answer.Sent] = answer
	}
	c := Conclusion{
		TLS: a[plain].OverTLS, HTTP: a.some(func(x Answer) bool { return x.Reaction == HTTP }),
		Envoy: a.some(Answer.byEnvoy), SpeaksFirst: a[nothing].Reaction == Data, Trust: a.trust(),
	}
	for _, answer := range answers {
		if answer.Server != "" && !c.Envoy {
			c.Server = answer.Server
		}
	}
	c.Finding = a.finding(c)
	c.ClosesHeaders = c.Finding == Off && !c.TLS && a[v2].ended()
	c.Mode = c.Finding.Mode()
	if c.Finding == Permissive || c.Finding == Strict {
		c.Versions, c.Exceptions = a.versions(), a.exceptions()
	}
	return c
}

// evidence is the answers of one round, by what was sent.
type evidence map[string]Answer

func (a evidence) some(f func(Answer) bool) bool {
	for _, answer := range a {
		if f(answer) {
			return true
		}
	}
	return false
}

// byEnvoy reports whether the answer says that it comes from an Envoy.
func (x Answer) byEnvoy() bool { return x.Reaction == HTTP && x.Server == "envoy" }

// notTLS reports whether a TLS handshake was answered with something else.
func (x Answer) notTLS() bool {
	return x.Reaction == NotTLS || x.OverTLS && !x.Handshake && x.Reaction == HTTP
}

func (x Answer) notConnected() bool { return x.Reaction == Refused || x.Reaction == Unreachable }

// ended reports whether the connection ended without an answer.
func (x Answer) ended() bool {
	switch x.Reaction {
	case Closed, Reset, Alert, TLSFailed, NotTLS:
		return true
	}
	return false
}

// served reports whether the payload has been understood: there is an answer, and none about the header.
func (a evidence) served(name string) bool {
	x := a[name]
	switch {
	case a.isRefusal(x):
		return false
	case x.OverTLS:
		return x.Handshake
	}
	return x.Reaction == HTTP || x.Reaction == Data
}

// isRefusal reports whether an answer is the response of an HTTP server to bytes that are not HTTP. Envoy's own 400
// comes from its codec: it has no other for a request like this one, and what a service has answered says so. Of
// another server, it is a failure that the request without a header does not have.
func (a evidence) isRefusal(x Answer) bool {
	if x.Reaction != HTTP {
		return x.Reaction == Unreadable
	}
	if x.byEnvoy() {
		return x.Status == 400 && !x.Service
	}
	p := a[plain]
	return p.Reaction == HTTP && x.Status >= 400 && x.Status != p.Status
}

// rejected reports whether a connection was answered as if it did not begin with a header, or ended.
func (a evidence) rejected(name string) bool { return a.isRefusal(a[name]) || a[name].ended() }

// open reports whether a connection is served, or waits for more. Over TLS, a server sends something first.
func (a evidence) open(name string) bool {
	return a.served(name) || a[name].Reaction == Silence && !a[name].OverTLS
}

// finding decides what the listener is.
func (a evidence) finding(c Conclusion) Finding {
	switch a[plain].Reaction {
	case Refused:
		return NothingListens
	case Unreachable:
		return NoRoute
	}
	if a.some(Answer.notConnected) {
		return Other
	}
	if !a.some(func(x Answer) bool { return x.Handshake }) && a.some(Answer.notTLS) {
		return NoTLS
	}
	served := a.served
	if anyServed := served(plain) || served(v1) || served(v2); !c.HTTP && !anyServed {
		served = a.open // a service that waits for more, or closed connections
	}
	return a.checkBroken(a.findingOf(served))
}

// findingOf decides by who is served.
func (a evidence) findingOf(served func(string) bool) Finding {
	headers := served(v1) || served(v2)
	switch {
	case served(plain) && headers:
		return Permissive
	case served(plain) && a.rejected(v1) && a.rejected(v2):
		return Off
	case served(plain) && a[plain].Reaction == Data && !a[broken].ended(): // what reads headers closes a broken one
		return Off
	case headers && a[plain].ended():
		return Strict
	case a[plain].ended():
		return a.closing()
	case a[plain].byEnvoy() && a.isRefusal(a[plain]):
		return AddedHeader
	case a[plain].Reaction == Silence && !headers:
		return Silent
	}
	return Other
}

// closing says why every connection is closed. A listener that reads headers waits for the rest of one. It looks at
// versions and at addresses after the header, and at server names after the client's first bytes. A tcp listener
// connects to its service after the header, too.
func (a evidence) closing() Finding {
	one, two := a[paused], a[split]
	rightAfter := one.Step == wholeHeader && two.Step == wholeHeader // whatever the versions are
	switch {
	case !one.ended() || !two.ended() || two.Step == firstSegment:
		return ClosesAll
	case rightAfter && !a.has(nothing):
		return Untrusted
	case rightAfter || two.OverTLS:
		return ClosesLater
	}
	return ClosesAll
}

// checkBroken corrects what looks permissive: what answers may treat a header as it treats other data. A broken header
// decides, because a listener that reads headers closes the connection.
func (a evidence) checkBroken(f Finding) Finding {
	x, tcp := a[broken], a.has(nothing)
	switch {
	case f != Permissive || a[plain].OverTLS: // no server gets a TLS handshake through that begins with a header
		return f
	case x.ended() || a.isRefusal(x):
		return Permissive
	case x.Reaction == Silence:
		return Silent
	case x.Reaction == Data, tcp && x.Reaction == a[v1].Reaction && x.Status == a[v1].Status:
		return Off
	}
	return NoDecision
}

func (a evidence) has(name string) bool {
	_, has := a[name]
	return has
}

// versions returns the versions that are accepted.
func (a evidence) versions() []string {
	var all []string
	for _, v := range []struct{ name, version string }{{v1, "v1"}, {v2, "v2"}} {
		if a.open(v.name) {
			all = append(all, v.version)
		}
	}
	return all
}

// exceptions returns the headers that are not accepted although others of the same version are.
func (a evidence) exceptions() []string {
	var all []string
	for _, x := range []struct{ name, of string }{{paused, v1}, {local, v2}, {tlvs, v2}, {split, v2}} {
		if a.open(x.of) && !a.open(x.name) {
			all = append(all, x.name)
		}
	}
	return all
}

// trust decides by the address that the service shows in its answer, such as one that echoes X-Forwarded-For.
func (a evidence) trust() Trust {
	for _, name := range []string{v1, v2, tlvs} {
		switch x := a[name]; {
		case x.Claimed:
			return Trusted
		case x.Direct:
			return Ignored
		}
	}
	return TrustUnknown
}
