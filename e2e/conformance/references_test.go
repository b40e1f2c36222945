//go:build e2e

package conformance

import "github.com/usherproxy/usher/e2e/lab"

// reference is a Consul that Usher is compared with.
type reference struct {
	version string
	// refused are the cases that it does not take, by name: a part of the error
	// that it gives, or of what an Envoy then waits for.
	refused map[string]string
	// spellings are the fields that it writes otherwise than the newest one, whose
	// language Usher speaks with every Consul.
	spellings []spelling
}

// current is the Consul that Usher must equal.
var current = reference{version: lab.ConsulNew}

// between is a Consul between the two others.
var between = reference{
	version:   lab.ConsulBetween,
	refused:   map[string]string{"request-headers-size-central": `invalid config key "MaxRequestHeadersKB"`},
	spellings: []spelling{bareAddresses},
}

// older is the Consul of long-lived installations.
var older = reference{
	version: lab.ConsulOld,
	refused: map[string]string{
		"limits-ejection":              `invalid config key "Defaults.PassiveHealthCheck.MaxEjectionPercent"`,
		"mesh-validate-clusters":       `invalid config key "ValidateClusters"`,
		"mesh-without-tls":             `invalid config key "HTTP.Incoming"`,
		"no-entry":                     "missing: any answer",
		"request-headers-size-central": `invalid config key "MaxRequestHeadersKB"`,
		"router-case":                  `invalid config key "Routes[0].Match.HTTP.CaseInsensitive"`,
	},
	spellings: oldSpellings,
}
