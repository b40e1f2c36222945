package xds

import "regexp"

// privateKey finds a private key in PEM, whole or cut off, in text where line
// ends may be written as \n.
var privateKey = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)`)

// redact makes a message of Envoy fit for a log. Envoy may quote the resource it
// rejects, and a cluster may carry its private key inline.
func redact(message string) string {
	const longest = 2048 // bytes; Envoy quotes without limit
	message = privateKey.ReplaceAllString(message, "(private key)")
	if len(message) > longest {
		message = message[:longest] + "..."
	}
	return message
}
