package accesslog

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// proxyClaim is whether an operator can show what a PROXY header claims. What request headers claim is handled
// before, in listeners/clientaddress.go.
type proxyClaim uint8

const (
	claimUnknown      proxyClaim = iota // it may
	claimNone                           // it cannot
	claimUseDirect                      // it can; the operator DOWNSTREAM_DIRECT_… shows the connection's own
	claimIfExpression                   // it can if the expression reads the addresses of the connection
	claimIfListed                       // it can if one of the operators in its parameter can
)

var addressWord = regexp.MustCompile(`\b(source|destination)\b`)

// noValue is what Envoy writes where an operator has no value.
const noValue = "-"

// HeaderWithoutClaims returns the value of a header for untrusted downstreams, in which Envoy replaces operators as in a
// format. It shows nothing that a PROXY header claims, and is empty if nothing is left.
func HeaderWithoutClaims(value string, can envoy.Capabilities) string {
	if !strings.Contains(value, "%") {
		return value
	}
	return hideClaims(value, can, "")
}

// withoutClaims returns the format for untrusted downstreams. It never shows what a PROXY header claims: it has the
// connection's own addresses instead, and nothing where there is no such counterpart.
func withoutClaims(f logFormat, can envoy.Capabilities) logFormat {
	return f.each(func(text string) string { return hideClaims(text, can, noValue) })
}

// hideClaims returns the text with the connection's own addresses in place of claimed ones, and with none where there is
// no such counterpart.
func hideClaims(text string, can envoy.Capabilities, none string) string {
	return replaceOperators(text, func(o operator) string {
		if replacement, ok := o.withoutClaim(can); ok {
			return replacement.String()
		}
		return none
	})
}

// withoutClaim returns the operator that shows no claim, and false if there is none. An unknown operator has none.
func (o operator) withoutClaim(can envoy.Capabilities) (operator, bool) {
	if strings.Contains(o.params, "proxy_protocol") { // it reads what the PROXY filter has stored
		return o, false
	}
	switch operators[o.name].proxyClaim {
	case claimNone:
		return o, true
	case claimUseDirect:
		o.name = strings.Replace(o.name, "DOWNSTREAM_", "DOWNSTREAM_DIRECT_", 1)
		return o, operators[o.name].since <= can.LogOperators
	case claimIfExpression:
		return o, !addressWord.MatchString(o.params)
	case claimIfListed:
		return o.listWithoutClaims(can)
	}
	return o, false
}

// redaction returns what is logged of an operator, for a listener that redacts anything.
type redaction func(p Params, o operator, e logEntry) string

// redactedText stands for what is not logged.
const redactedText = "[redacted]"

// addressHeaders are the request headers that carry the addresses of clients. An address in them cannot be
// truncated.
var addressHeaders = []string{
	"x-forwarded-for", "x-envoy-external-address", "forwarded", "x-real-ip", "true-client-ip", "cf-connecting-ip", "x-client-ip",
}

// checkRedaction returns an error for an operator that can show anything.
func (p Params) checkRedaction(text string) error {
	if !p.Settings.Redacts() {
		return nil
	}
	var problem error
	replaceOperators(text, func(o operator) string {
		if problem == nil && (o.name == "CEL" || o.name == "COALESCE") {
			problem = fmt.Errorf("%s could show values that you redact; use %%REQ(…)%% or another operator, or remove the redact settings", o)
		}
		return ""
	})
	return problem
}

// redacted returns the format of a log entry without what the settings keep out.
func (p Params) redacted(e logEntry) logFormat {
	if !p.Settings.Redacts() {
		return e.format
	}
	return e.format.each(func(text string) string {
		return replaceOperators(text, func(o operator) string {
			if redact := operators[o.name].redacted; redact != nil {
				return redact(p, o, e)
			}
			return redactedText
		})
	})
}

func unredacted(_ Params, o operator, _ logEntry) string { return o.String() }

func redactPath(p Params, o operator, _ logEntry) string {
	if p.Settings.RedactQuery == settings.Yes {
		return "%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)%"
	}
	return o.String()
}

func redactQuery(p Params, o operator, _ logEntry) string {
	if p.Settings.RedactQuery == settings.Yes {
		return redactedText
	}
	return o.String()
}

// redactHeader returns what is logged of a header, or of the second one that counts where the first is missing.
func redactHeader(p Params, o operator, _ logEntry) string {
	first, second, _ := strings.Cut(o.params, "?")
	if p.redactsHeader(first) {
		return redactedText
	}
	if p.redactsHeader(second) {
		o.params, second = first, ""
	}
	if strings.EqualFold(first, "cookie") && len(p.Settings.RedactCookies) > 0 {
		return envoy.CEL(cookiesWithout(p.Settings.RedactCookies))
	}
	hasQuery := func(name string) bool {
		return slices.Contains([]string{":path", "x-envoy-original-path", "referer"}, strings.ToLower(name))
	}
	if p.Settings.RedactQuery == settings.Yes && (hasQuery(first) || hasQuery(second)) {
		o.name = "REQ_WITHOUT_QUERY"
	}
	return o.String()
}

// redactsHeader reports whether nothing of a header is logged.
func (p Params) redactsHeader(name string) bool {
	name = strings.ToLower(name)
	return slices.Contains(p.Settings.RedactHeaders, name) ||
		p.Settings.ClientAddress == settings.ClientTruncated && slices.Contains(addressHeaders, name) ||
		len(p.Settings.RedactCookies) > 0 && name == "set-cookie"
}

// cookiesWithout is the expression of the request's cookies. It shows none of them if one with such a name may be
// there: an expression cannot cut it out.
func cookiesWithout(names []string) string {
	found := make([]string, len(names))
	for i, name := range names {
		found[i] = fmt.Sprintf("request.headers['cookie'].contains('%s=')", name)
	}
	return fmt.Sprintf("%s ? '%s' : request.headers['cookie']", strings.Join(found, " || "), redactedText)
}

// redactClientAddress returns the network in place of the client's address.
func redactClientAddress(p Params, o operator, _ logEntry) string {
	if p.Settings.ClientAddress == settings.ClientTruncated {
		return envoy.CEL(networkOf("source.address"))
	}
	return o.String()
}

// redactDirectAddress returns the address of the downstream. A load balancer is shown as it is. A downstream that
// may be a client is shown as its network, or not at all, since expressions cannot read this address.
func redactDirectAddress(p Params, o operator, e logEntry) string {
	balancer := p.Strict || p.HasUntrusted && !e.untrusted
	switch {
	case p.Settings.ClientAddress != settings.ClientTruncated, balancer && e.format.reason == "":
		return o.String()
	case p.Envoy.AddressMasks:
		return "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT(24)%"
	}
	return noValue
}

// networkOf is the expression of the network of an address with a port: /24, or /48 of IPv6, where Envoy writes one
// run of zeros as "::".
func networkOf(address string) string {
	extract := func(pattern, rewrite string) string {
		return fmt.Sprintf(`re.extract(%s, r'%s', r'%s')`, address, pattern, rewrite)
	}
	v4 := extract(`^(\d+\.\d+\.\d+)\.`, `\1.0/24`)
	whole := `^\[((?:[0-9a-f]+:){2}[0-9a-f]+):`
	v6 := fmt.Sprintf(`%s.matches(r'%s') ? %s : %s`, address, whole,
		extract(whole, `\1::/48`), extract(`^\[(:|(?:[0-9a-f]+:){1,2}):`, `\1:/48`))
	return fmt.Sprintf(`%s.startsWith('[') ? (%s) : %s`, address, v6, v4)
}

// redactSetting returns the first setting of the listener that redacts.
func (p Params) redactSetting() string {
	switch {
	case p.Settings.RedactQuery == settings.Yes:
		return "redact_query"
	case len(p.Settings.RedactHeaders) > 0:
		return "redact_headers"
	case len(p.Settings.RedactCookies) > 0:
		return "redact_cookies"
	}
	return "client_address"
}
