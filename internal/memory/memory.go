// Package memory is the formula for how much memory Usher needs. docs/performance.md has it as a table, and tests of real
// processes hold it.
package memory

import (
	"fmt"
	"strings"
)

// Units, in bytes.
const (
	KiB = 1 << 10
	MiB = 1 << 20
)

// Load is what the memory depends on.
type Load struct {
	Services  int // of all gateways: one that two gateways have counts twice
	Endpoints int // instances of these services
	Streams   int // of Envoys
	Unread    int // bytes of responses that Envoys do not read; each stream may hold one response of each type
	Callers   int // connections without a token
	Ports     int // of which connections are reported
	Requests  int // bytes of requests under way
	Messages  int // bytes of messages under way at the port for consul-dataplanes
	Answers   int // bytes of Consul's answers that are being read
	Kept      int // bytes of Consul's answers that --state-dir keeps
}

// Term is a part of the formula.
type Term struct {
	Of string // what needs the memory
	// Live is what cannot be collected, and Peak what is used at most without a memory limit. When a collection begins,
	// there is as much garbage as live memory; and an attacker makes more of it until the collection ends.
	Live, Peak int
	Each       string // for what that is; empty: once
	count      func(Load) int
}

// Terms are the parts of the formula.
var Terms = []Term{
	{"the process", 40 * MiB, 60 * MiB, "", func(Load) int { return 1 }},
	{"a service of a gateway: its queries, its resources, what they are compared with", 75 * KiB, 170 * KiB, "service", func(l Load) int { return l.Services }},
	{"an instance of a service", 1 * KiB, 2 * KiB, "instance", func(l Load) int { return l.Endpoints }},
	{"a stream of an Envoy", 80 * KiB, 200 * KiB, "stream", func(l Load) int { return l.Streams }},
	{"a service of a stream of an Envoy: what the stream notes until the Envoy acknowledges", KiB / 10, KiB / 5, "service and stream", func(l Load) int { return l.Services * l.Streams }},
	{"responses that Envoys do not read, for two minutes at most", 1, 2, "byte", func(l Load) int { return l.Unread }},
	{"a connection without a token", 20 * KiB, 40 * KiB, "connection", func(l Load) int { return l.Callers }},
	{"a port that Envoys report connections of", 30 * KiB, 60 * KiB, "port", func(l Load) int { return l.Ports }},
	{"requests under way: 64 MiB at most", 1, 5, "byte", func(l Load) int { return l.Requests }},
	{"messages under way at the port for consul-dataplanes: 100 MiB at most", 1, 5, "byte", func(l Load) int { return l.Messages }},
	{"answers of Consul that are being read: 128 MiB at most", 1, 2, "byte", func(l Load) int { return l.Answers }},
	{"answers of Consul that `--state-dir` keeps", 1, 2, "byte", func(l Load) int { return l.Kept }},
}

// Live returns how many bytes cannot be collected. A memory limit below that makes Usher slow.
func (l Load) Live() int {
	sum := 0
	for _, t := range Terms {
		sum += t.Live * t.count(l)
	}
	return sum
}

// Peak returns how many bytes are used at most.
func (l Load) Peak() int {
	sum := 0
	for i := range Terms {
		sum += l.PeakOf(i)
	}
	return sum
}

// PeakOf returns what a term adds to the peak.
func (l Load) PeakOf(term int) int { return Terms[term].Peak * Terms[term].count(l) }

// Table returns the formula for the docs, in Markdown.
func Table() string {
	var b strings.Builder
	b.WriteString("| what | live | peak |\n|---|---:|---:|\n")
	for _, t := range Terms {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", t.Of, amount(t.Live, t.Each), amount(t.Peak, t.Each))
	}
	return b.String()
}

// amount formats bytes for each of something.
func amount(bytes int, each string) string {
	switch {
	case each == "byte":
		return fmt.Sprintf("%d ×", bytes)
	case bytes >= MiB:
		return fmt.Sprintf("%d MiB", bytes/MiB)
	case bytes < KiB:
		return fmt.Sprintf("%.1f KiB", float64(bytes)/KiB)
	}
	return fmt.Sprintf("%d KiB", bytes/KiB)
}
