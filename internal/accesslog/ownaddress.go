package accesslog

import (
	"regexp"

	"github.com/usherproxy/usher/internal/envoy"
)

// ownAddresses gives a log format that never shows what a PROXY header has said:
// whatever the format asks for, it gets the connection's own addresses, and
// nothing of what has no such counterpart.
func ownAddresses(format entryFormat, can envoy.Capabilities) entryFormat {
	return format.each(func(text string) string { return ownAddress(text, can) })
}

// The operators that show what a PROXY header says
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/advanced/substitution_formatter):
// those of the addresses in all their spellings, also as names inside another
// operator (COALESCE), and those that lead to the filter's metadata or to
// attributes of the connection.
var (
	claimedRemote = regexp.MustCompile(`DOWNSTREAM_REMOTE_(ADDRESS|PORT)`)
	claimedLocal  = regexp.MustCompile(`DOWNSTREAM_LOCAL_(ADDRESS|PORT)`)
	localOperator = regexp.MustCompile(`%[^%]*DOWNSTREAM_LOCAL_(ADDRESS|PORT)[^%]*%`)
	otherClaims   = regexp.MustCompile(`%CEL\([^%]*\b(source|destination)\b[^%]*\)(:[0-9]+)?%|%[A-Z_]+\([^%]*proxy_protocol[^%]*\)(:[0-9]+)?%`)
	// An expression may have a percent sign of its own.
	hiddenClaim = regexp.MustCompile(`%[A-Z_]+\(([^)]|\)[^%:])*(\b(source|destination)\.|proxy_protocol)`)
)

// ownAddress changes a text with operators.
func ownAddress(text string, can envoy.Capabilities) string {
	const nothing = "-"
	text = claimedRemote.ReplaceAllString(text, "DOWNSTREAM_DIRECT_REMOTE_$1")
	if can.DirectLocalAddress {
		text = claimedLocal.ReplaceAllString(text, "DOWNSTREAM_DIRECT_LOCAL_$1")
	} else {
		text = localOperator.ReplaceAllString(text, nothing)
	}
	text = otherClaims.ReplaceAllString(text, nothing)
	if hiddenClaim.MatchString(text) {
		return nothing + "\n"
	}
	return text
}
