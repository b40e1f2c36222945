//go:build e2e

package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
			if missed := strings.Contains(r.row("x").barResults(), "NOT MET"); missed == tt.met {
				t.Errorf("verdict %q", r.row("x").barResults())
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
	if v := r.row("x").barResults(); v != "" {
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

func TestMarkdownReplacesWhatIsBetweenTheMarks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page.md")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# Page\n" + beginMark + "\nold\n" + endMark + "\nthe end\n")
	r := report{bars: true}
	r.record(ofGateway(1000, 1)+"p50", millisecond, cells{4, 400, 1}, timesFloor(2))
	r.record(ofGateway(1000, 1)+"memory", bytesOf, pair(3<<20, 1<<30), ofConsul(4))
	r.record(ofGateway(5000, 16)+"p50", millisecond, alone(9))
	r.record(ofGateway(1000, 1)+"cold", millisecond, pair(1, 2))
	r.record("growth from 100 to 5,000 services: p50", times, alone(1.5))
	if err := r.insert(path, "2 cores\n"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const head = "| | Usher | Consul | floor | Usher/Consul | Usher/floor | bar |\n|---|---:|---:|---:|---:|---:|---|\n"
	want := "# Page\n" + beginMark + "\n```text\n2 cores\n```\n" +
		"\n### 1,000 services, 1 Envoy\n\n" + head +
		"| p50 | 4 ms | 400 ms | 1 ms | 1/100 | 4 × | ≤ 2 × floor **not met** |\n" +
		"| memory | 3 MiB | 1 GiB | - | 1/341 | - | ≤ 1/4 of consul |\n" +
		"| cold | 1 ms | 2 ms | - | 1/2 | - |  |\n" +
		"\n### 5,000 services, 16 Envoys\n\n" + head +
		"| p50 | 9 ms | - | - | - | - |  |\n" +
		"\n### Growth\n\n" + head +
		"| growth from 100 to 5,000 services: p50 | 1.5 × | - | - | - | - |  |\n\n" +
		endMark + "\nthe end\n"
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	write("# Page without a place\n")
	if err := r.insert(path, ""); err == nil || !strings.Contains(err.Error(), beginMark) {
		t.Errorf("a page without the marks: %v", err)
	}
}
