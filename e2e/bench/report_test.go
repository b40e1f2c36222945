//go:build e2e

package main

import (
	"strings"
	"testing"
)

func TestRatiosAreMediansOfTheRounds(t *testing.T) {
	r := row{rounds: []cells{{1, 10, 2}, {4, 8, 1}, {9, 9, 3}}}
	c, perConsul, perFloor := r.medians()
	equal(t, c.usher, 4)
	equal(t, c.consul, 9)
	equal(t, c.floor, 2)
	equal(t, perConsul, 0.5)
	equal(t, perFloor, 3)
}

func TestBars(t *testing.T) {
	for _, tt := range []struct {
		name string
		bar  bar
		in   cells
		met  bool
	}{
		{"an nth of Consul", ofConsul(50), pair(2, 100), true},
		{"more than an nth of Consul", ofConsul(50), pair(2.1, 100), false},
		{"Consul not measured", ofConsul(50), alone(1), false},
		{"twice the floor", timesFloor(2), overFloor(4, 2), true},
		{"more than twice the floor", timesFloor(2), overFloor(4.1, 2), false},
		{"floor and some more", overFloorBy(1.2, 50), overFloor(170, 100), true},
		{"floor and too much more", overFloorBy(1.2, 50), overFloor(171, 100), false},
		{"at most", atMost(1, "one"), alone(1), true},
		{"more than that", atMost(1, "one"), alone(1.01), false},
		{"not measured", atMost(1, "one"), alone(none), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := report{bars: true}
			r.record("x", millisecond, tt.in, tt.bar)
			if missed := strings.Contains(r.row("x").verdict(), "NOT MET"); missed == tt.met {
				t.Errorf("verdict %q", r.row("x").verdict())
			}
		})
	}
}

func TestTable(t *testing.T) {
	r := report{bars: true}
	r.record("small", millisecond, cells{4, 400, 2}, timesFloor(2))
	r.record("large", millisecond, alone(9), atMost(5, "5 ms"))
	r.record("memory", bytesOf, pair(3<<20, 1<<30))
	r.compare("growth", "large", "small", atMost(2, "2"))
	var out strings.Builder
	if err := r.table(&out); err != nil {
		t.Fatal(err)
	}
	want := `what    usher  consul  floor  usher/consul  usher/floor  bar
small   4 ms   400 ms  2 ms   1/100         2 ×          ≤ 2 × floor
large   9 ms   -       -      -             -            ≤ 5 ms NOT MET
memory  3 MiB  1 GiB   -      1/341         -            
growth  2.25 × -       -      -             -            ≤ 2 NOT MET
`
	if got := squeeze(out.String()); got != squeeze(want) {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestBarsAreLeftOutForOtherSizes(t *testing.T) {
	var r report
	r.record("x", millisecond, alone(9), atMost(5, "5 ms"))
	if v := r.row("x").verdict(); v != "" {
		t.Errorf("verdict %q", v)
	}
}

func TestNumber(t *testing.T) {
	for _, tt := range []struct {
		v    float64
		unit unit
		want string
	}{
		{none, millisecond, "-"},
		{0, piece, "0"},
		{1234.5, millisecond, "1234 ms"},
		{0.01234, percent, "0.0123 %"},
		{100, bytesOf, "100 B"},
		{1536, bytesOf, "1.5 KiB"},
	} {
		if got := number(tt.v, tt.unit); got != tt.want {
			t.Errorf("number(%v, %q) = %q, want %q", tt.v, tt.unit, got, tt.want)
		}
	}
	for n, want := range map[int]string{16: "16", 1000: "1,000", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) = %q, want %q", n, got, want)
		}
	}
}

// squeeze makes one space of many.
func squeeze(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}
