//go:build e2e

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// unit is what a row's numbers are of.
type unit string

const (
	millisecond unit = "ms"
	bytesOf     unit = "B"
	piece       unit = ""
	percent     unit = "%"
	times       unit = "×"
)

// cells are the numbers of a row: of one round, or the medians of all.
type cells struct{ usher, consul, floor float64 }

func alone(usher float64) cells            { return cells{usher, none, none} }
func pair(usher, consul float64) cells     { return cells{usher, consul, none} }
func overFloor(usher, floor float64) cells { return cells{usher, none, floor} }

// row is one thing that was measured, once a round.
type row struct {
	what   string
	unit   unit
	bars   []bar
	rounds []cells
}

// medians returns the row's numbers, and the medians of the rounds' ratios.
func (r row) medians() (c cells, perConsul, perFloor float64) {
	var usher, consul, floor, toConsul, toFloor []float64
	for _, round := range r.rounds {
		usher, consul, floor = append(usher, round.usher), append(consul, round.consul), append(floor, round.floor)
		toConsul = append(toConsul, ratio(round.usher, round.consul))
		toFloor = append(toFloor, ratio(round.usher, round.floor))
	}
	return cells{median(usher), median(consul), median(floor)}, median(toConsul), median(toFloor)
}

// bar is what a row's numbers should keep to.
type bar struct {
	text string
	met  func(c cells, perConsul, perFloor float64) bool
}

// ofConsul is that Usher needs at most an nth of what Consul needs.
func ofConsul(n float64) bar {
	return bar{fmt.Sprintf("≤ 1/%g of consul", n), func(_ cells, perConsul, _ float64) bool { return perConsul <= 1/n }}
}

func timesFloor(n float64) bar {
	return bar{fmt.Sprintf("≤ %g × floor", n), func(_ cells, _, perFloor float64) bool { return perFloor <= n }}
}

// overFloorBy is at most so many times the floor and so many more of the row's
// unit.
func overFloorBy(n, more float64) bar {
	return bar{fmt.Sprintf("≤ %g × floor + %g", n, more), func(c cells, _, _ float64) bool { return c.usher <= n*c.floor+more }}
}

func atMost(most float64, text string) bar {
	return bar{"≤ " + text, func(c cells, _, _ float64) bool { return c.usher <= most }}
}

// report collects rows in the order in which they first come.
type report struct {
	bars bool // whether the run has the sizes that the bars are for
	rows []*row
}

// record adds a round to the row of that name.
func (r *report) record(what string, u unit, c cells, bars ...bar) {
	at := r.row(what)
	if at == nil {
		at = &row{what: what, unit: u}
		if r.bars {
			at.bars = bars
		}
		r.rows = append(r.rows, at)
	}
	at.rounds = append(at.rounds, c)
}

func (r *report) row(what string) *row {
	for _, at := range r.rows {
		if at.what == what {
			return at
		}
	}
	return nil
}

// compare records, for each round, Usher's number of one row over that of
// another.
func (r *report) compare(what, of, to string, bars ...bar) {
	a, b := r.row(of), r.row(to)
	if a == nil || b == nil {
		return
	}
	for i := range min(len(a.rounds), len(b.rounds)) {
		r.record(what, times, alone(ratio(a.rounds[i].usher, b.rounds[i].usher)), bars...)
	}
}

// table writes the rows for people.
func (r *report) table(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tusher\tconsul\tfloor\tusher/consul\tusher/floor\tbar")
	for _, at := range r.rows {
		c, perConsul, perFloor := at.medians()
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", at.what,
			number(c.usher, at.unit), number(c.consul, at.unit), number(c.floor, at.unit),
			fraction(perConsul), number(perFloor, times), at.barResults())
	}
	return w.Flush()
}

// barResults returns the row's bars, and says which are not met.
func (r row) barResults() string {
	c, perConsul, perFloor := r.medians()
	var out []string
	for _, b := range r.bars {
		text := b.text
		if !b.met(c, perConsul, perFloor) {
			text += " NOT MET"
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// number prints three figures, or what there is before the point.
func number(v float64, u unit) string {
	if math.IsNaN(v) {
		return "-"
	}
	if u == bytesOf {
		return size(v)
	}
	return strings.TrimSpace(significant(v) + " " + string(u))
}

func significant(v float64) string {
	if math.Abs(v) >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// size prints bytes.
func size(v float64) string {
	for _, of := range []struct {
		factor float64
		name   string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if math.Abs(v) >= of.factor {
			return significant(v/of.factor) + " " + of.name
		}
	}
	return significant(v) + " B"
}

// fraction prints a ratio below one as 1/n.
func fraction(v float64) string {
	if v > 0 && v < 1 {
		return "1/" + significant(1/v)
	}
	return number(v, piece)
}

// thousands prints a count with separators.
func thousands(n int) string {
	text := strconv.Itoa(n)
	for at := len(text) - 3; at > 0; at -= 3 {
		text = text[:at] + "," + text[at:]
	}
	return text
}

// jsonRow is a row in the output for programs; what was not measured is left
// out.
type jsonRow struct {
	What   string               `json:"what"`
	Unit   unit                 `json:"unit"`
	Bar    string               `json:"bar,omitempty"`
	Rounds []map[string]float64 `json:"rounds"`
}

// save writes the rows, with every round, for later comparison.
func (r *report) save(path string, m machine) error {
	rows := make([]jsonRow, 0, len(r.rows))
	for _, at := range r.rows {
		out := jsonRow{What: at.what, Unit: at.unit, Bar: at.barResults()}
		for _, round := range at.rounds {
			out.Rounds = append(out.Rounds, measured(round))
		}
		rows = append(rows, out)
	}
	encoded, err := json.MarshalIndent(map[string]any{"machine": m, "rows": rows}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(encoded, '\n'), 0o644)
}

func measured(c cells) map[string]float64 {
	out := map[string]float64{}
	for name, v := range map[string]float64{"usher": c.usher, "consul": c.consul, "floor": c.floor} {
		if !math.IsNaN(v) {
			out[name] = v
		}
	}
	return out
}

// none stands for a number that was not measured.
var none = math.NaN()

// percentile returns the least value that at least p percent of the values do not
// exceed; none of no values.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return none
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

// median returns the middle value, or the mean of the middle two; values that
// were not measured do not count.
func median(values []float64) float64 {
	measured := slices.DeleteFunc(slices.Sorted(slices.Values(values)), math.IsNaN)
	n := len(measured)
	if n == 0 {
		return none
	}
	return (measured[(n-1)/2] + measured[n/2]) / 2
}

// ratio returns a/b; none where either was not measured or b is 0.
func ratio(a, b float64) float64 {
	if b == 0 {
		return none
	}
	return a / b
}

// milliseconds returns durations as numbers.
func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// each divides a total among n.
func each(total float64, n int) float64 { return ratio(total, float64(n)) }

// The bars that depend on the number of Envoys; the others stand where their
// rows are recorded. All are for 1,000 services.

// barsOfConsul are for the latency and the CPU of an endpoint change.
func (b *bench) barsOfConsul(envoys int) (latency, cpu []bar) {
	if envoys == 1 {
		return []bar{ofConsul(50)}, []bar{ofConsul(100)}
	}
	return []bar{ofConsul(300)}, []bar{ofConsul(500)}
}

// barsOverFloor are for the latency of an endpoint change.
func (b *bench) barsOverFloor(envoys int) []bar {
	if envoys == 1 {
		return []bar{timesFloor(2)}
	}
	return []bar{timesFloor(3)}
}

// barsOfMemory are for the resident memory.
func (b *bench) barsOfMemory(envoys int) []bar {
	if envoys == 1 {
		return nil
	}
	return []bar{ofConsul(4)}
}
