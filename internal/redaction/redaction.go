// Package redaction removes secrets from texts. What is secret in resources and settings, internal/resourcediff knows.
package redaction

import (
	"regexp"
	"strings"
)

// Redacted stands for a value that must not be printed. It is Envoy's own word for that.
const Redacted = "[redacted]"

// secretText matches private keys in PEM, also one that is cut off or has \n for its line ends, and JSON Web Tokens.
var secretText = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)` +
	`|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*`)

// A user and password are all until the last @ before a slash, space or quote. A password may also have these, if it cannot
// be a port.
var (
	urlUser  = regexp.MustCompile(`://(?:[^\s"/?#:@\[\]]*:(?:\d*[^\s"/?#@\d]|[/?# ])[^"\n@]*@)?(?:[^\s"/?#]*@)?`)
	hostUser = regexp.MustCompile(`(^|[\s"'=,\x00])[^\s"'=,:@/\x00]+:[^\s"@/\x00]+@([\w.:\[\]-]+:\d{1,5}(?:[\s"'/?#,\x00]|$))`)
)

// Text returns a text without private keys in PEM, JSON Web Tokens, and users with their passwords in URLs and before host:port.
func Text(text string) string {
	text = secretText.ReplaceAllString(text, Redacted)
	text = urlUser.ReplaceAllStringFunc(text, func(found string) string {
		if !strings.HasSuffix(found, "@") {
			return found
		}
		return "://" + Redacted + "@"
	})
	return hostUser.ReplaceAllString(text, "${1}"+Redacted+"@${2}")
}
