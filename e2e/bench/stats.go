//go:build e2e

package main

import (
	"math"
	"slices"
	"time"
)

// none stands for a number that was not measured.
var none = math.NaN()

// percentile gives the least value that at least p percent of the values do not
// exceed; none of no values.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return none
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

// median gives the middle value, or the mean of the middle two; values that
// were not measured do not count.
func median(values []float64) float64 {
	measured := slices.DeleteFunc(slices.Sorted(slices.Values(values)), math.IsNaN)
	n := len(measured)
	if n == 0 {
		return none
	}
	return (measured[(n-1)/2] + measured[n/2]) / 2
}

// ratio gives a/b; none where either was not measured or b is 0.
func ratio(a, b float64) float64 {
	if b == 0 {
		return none
	}
	return a / b
}

// milliseconds gives durations as numbers.
func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// each divides a total among n.
func each(total float64, n int) float64 { return ratio(total, float64(n)) }
