//go:build e2e

package main

import (
	"math"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, tt := range []struct {
		name   string
		values []float64
		p      float64
		want   float64
	}{
		{"p50 of 1 to 100", hundred, 50, 50},
		{"p99 of 1 to 100", hundred, 99, 99},
		{"p100 is the greatest", hundred, 100, 100},
		{"p0 is the least", hundred, 0, 1},
		{"p99 of few is the greatest", []float64{3, 1, 2}, 99, 3},
		{"of nothing", nil, 50, none},
	} {
		t.Run(tt.name, func(t *testing.T) { equal(t, percentile(tt.values, tt.p), tt.want) })
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		name   string
		values []float64
		want   float64
	}{
		{"of one", []float64{7}, 7},
		{"of three", []float64{9, 1, 4}, 4},
		{"of an even number", []float64{4, 1, 2, 9}, 3},
		{"without what was not measured", []float64{none, 5, none}, 5},
		{"of nothing measured", []float64{none}, none},
	} {
		t.Run(tt.name, func(t *testing.T) { equal(t, median(tt.values), tt.want) })
	}
}

func TestMedianLeavesItsValuesAlone(t *testing.T) {
	values := []float64{3, 1, 2}
	median(values)
	if values[0] != 3 || values[1] != 1 || values[2] != 2 {
		t.Errorf("median reordered its values: %v", values)
	}
}

func TestRatio(t *testing.T) {
	equal(t, ratio(1, 4), 0.25)
	equal(t, ratio(0, 4), 0)
	equal(t, ratio(1, 0), none)
	equal(t, ratio(none, 4), none)
	equal(t, each(10, 4), 2.5)
	equal(t, milliseconds(1500*time.Microsecond), 1.5)
}

// equal compares numbers, and takes one that was not measured as equal to
// another.
func equal(t *testing.T, got, want float64) {
	t.Helper()
	if got != want && !(math.IsNaN(got) && math.IsNaN(want)) {
		t.Errorf("got %v, want %v", got, want)
	}
}
