package gateway

import "fmt"

// EnvoyVersion is the release of an Envoy, as its node says at the start of a stream
// (user_agent_build_version). The zero value means that it did not say, and
// counts as newer than every release.
type EnvoyVersion struct {
	Major, Minor, Patch uint32
}

// AtLeast says whether e is the release major.minor or a later one.
func (e EnvoyVersion) AtLeast(major, minor uint32) bool {
	if e == (EnvoyVersion{}) {
		return true
	}
	return e.Major > major || e.Major == major && e.Minor >= minor
}

// String gives "1.36.2", or "unknown".
func (e EnvoyVersion) String() string {
	if e == (EnvoyVersion{}) {
		return "unknown"
	}
	return fmt.Sprintf("%d.%d.%d", e.Major, e.Minor, e.Patch)
}
