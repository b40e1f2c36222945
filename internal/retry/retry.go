// Package retry decides how long to wait after failures.
package retry

import (
	"math/rand/v2"
	"time"
)

// The pauses double from FirstPause up to LongestPause.
const (
	FirstPause   = 100 * time.Millisecond
	LongestPause = 10 * time.Second
)

// Pause returns the pause after so many failures in a row, which is at least one. Up to half of it is taken off at random,
// so that those who failed together do not retry at the same moment.
func Pause(failures int) time.Duration {
	d := LongestPause
	if failures < 8 {
		d = min(d, FirstPause<<(failures-1))
	}
	return Jitter(d)
}

// Jitter returns a pause with up to half of it taken off at random.
func Jitter(pause time.Duration) time.Duration { return pause - rand.N(pause/2) }
