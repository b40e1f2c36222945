package loadbalancer

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/golden"
)

// logged is a log that the test reads line by line.
type logged struct{ bytes.Buffer }

func (l *logged) lines() []string {
	defer l.Reset()
	return strings.Split(strings.TrimSuffix(l.String(), "\n"), "\n")
}

// usher is one Usher with its own Envoys.
type usher struct {
	*testReconciler
	name     string
	wake     time.Time
	log      logged
	reports  []report // of its Envoys, the oldest first
	first    map[evidence.Type]time.Time
	ends     []report // connections that have not ended
	problems []problem.Problem
	mode     settings.Mode
	// restricted says that the listener has trusted_cidrs.
	restricted bool
}

// report is a connection to an Envoy.
type report struct {
	began, ended time.Time
	address      netip.Addr
	untrusted    bool
	evidence.Type
}

// silent is an EvidenceSource; the test calls observe itself.
type silent struct{ EvidenceSource }

func newUsher(t *testing.T, name string, a *apiServer, s story, at time.Time) *usher {
	u := &usher{name: name, first: map[evidence.Type]time.Time{}}
	record := ""
	if s.record {
		record = "record"
	}
	o := a.options(t, record)
	if s.grace != nil {
		o.Grace = *s.grace
	}
	o.Logger, o.Evidence = slog.New(slog.NewTextHandler(&u.log, &slog.HandlerOptions{ReplaceAttr: withoutTime})), silent{}
	u.testReconciler = newTestReconcilerWith(t, o, at)
	return u
}

// connect makes a connection of a flow to the usher's Envoy now, whose listener has the last mode. It reports whether it was
// lost.
func (u *usher) connect(f flow) (lost bool) {
	c := report{began: u.time, ended: u.time.Add(time.Duration(f.life * float64(time.Second))), address: netip.MustParseAddr(f.address)}
	c.untrusted = f.untrusted
	switch {
	case u.restricted && f.untrusted && u.mode != settings.Off:
		c.Type = evidence.Untrusted
	case u.mode == settings.Off && f.header:
		c.Type, lost = evidence.Malformed, true
	case u.mode == settings.Strict && !f.header:
		c.Type, c.ended, lost = evidence.Refused, u.time, true
	case f.header:
		c.Type = evidence.WithHeader
	default:
		c.Type = evidence.WithoutHeader
	}
	u.ends = append(u.ends, c)
	return lost && !f.stray
}

// report reports the connections that have ended. It returns false if there are none.
func (u *usher) report() bool {
	isOver := func(c report) bool { return !c.ended.After(u.time) }
	before := len(u.reports)
	for _, c := range u.ends {
		if isOver(c) {
			if !slices.ContainsFunc(u.reports, func(r report) bool { return r.Type == c.Type && u.time.Sub(r.ended) < evidence.Window }) {
				u.first[c.Type] = u.time
			}
			u.reports = append(u.reports, c)
		}
	}
	u.ends = slices.DeleteFunc(u.ends, isOver)
	if len(u.reports) == before {
		return false
	}
	u.reports = slices.DeleteFunc(u.reports, func(c report) bool { return u.time.Sub(c.ended) >= evidence.Window })
	u.observe(evidence.Ports{8080: summaryOf(u.reports, u.first, u.restricted)})
	return true
}

func summaryOf(connections []report, first map[evidence.Type]time.Time, restricted bool) evidence.Summary {
	s := evidence.Summary{Restricted: restricted, RefusedTrusted: restricted}
	tallies := map[evidence.Type]*evidence.Tally{
		evidence.WithHeader: &s.WithHeader, evidence.WithoutHeader: &s.WithoutHeader, evidence.Refused: &s.Refused,
		evidence.Malformed: &s.Malformed, evidence.Untrusted: &s.Untrusted,
	}
	runs := runs{}
	for _, c := range connections {
		if restricted && !c.untrusted {
			runs.add(c)
		}
		t := tallies[c.Type]
		t.Count++
		t.First, t.Last, t.Began = first[c.Type], c.ended, evidence.Latest(t.Began, c.began)
		if !slices.Contains(t.Addresses, c.address) && len(t.Addresses) < evidence.MaxAddresses {
			t.Addresses = append(t.Addresses, c.address)
		}
	}
	s.OnlyMalformed = runs.tally()
	return withHeaderSenders(s)
}

// runs are the malformed connections of each address, one after the other, as the store counts them.
type runs map[netip.Addr]*evidence.Tally

func (r runs) add(c report) {
	t := r[c.address]
	switch {
	case c.Type != evidence.Malformed:
		delete(r, c.address)
	case t == nil:
		r[c.address] = &evidence.Tally{Count: 1, First: c.ended, Last: c.ended, Addresses: []netip.Addr{c.address}}
	default:
		t.Count, t.Last = t.Count+1, c.ended
	}
}

// tally is the longest run, and the addresses of all.
func (r runs) tally() (longest evidence.Tally) {
	var addresses []netip.Addr
	for _, t := range r {
		if t.Count < 3 {
			continue
		}
		addresses = append(addresses, t.Addresses...)
		if t.Last.Sub(t.First) > longest.Last.Sub(longest.First) || longest.Count == 0 {
			longest = *t
		}
	}
	longest.Addresses = addresses
	return longest
}

// withHeaderSenders completes a summary as the store does.
func withHeaderSenders(s evidence.Summary) evidence.Summary {
	s.RefusedHeaderSenders = slices.ContainsFunc(s.Refused.Addresses, func(a netip.Addr) bool { return slices.Contains(s.WithHeader.Addresses, a) })
	return s
}

// advance lets the Usher go on if something woke it, and returns what it logs and reports, and its new mode.
func (u *usher) advance(awake bool) (lines, modes []string) {
	if !awake && u.time.Before(u.wake) {
		return nil, nil
	}
	u.wake = u.time.Add(u.step(u.t.Context()))
	for _, line := range u.log.lines() {
		if strings.Contains(line, "port=8080") {
			lines = append(lines, line)
		}
	}
	for _, p := range u.last.Problems {
		if !slices.Contains(u.problems, p) {
			lines = append(lines, "problem: "+p.String())
		}
	}
	for _, p := range u.problems {
		if !slices.Contains(u.last.Problems, p) {
			lines = append(lines, "problem over: "+p.String())
		}
	}
	if mode := u.modeNow(); mode != u.mode {
		modes = append(modes, string(mode))
		u.mode = mode
	}
	u.problems = u.last.Problems
	return lines, modes
}

// modeNow is the mode that the listener gets.
func (u *usher) modeNow() settings.Mode {
	if state := u.last.ForPort(8080); !state.OnlyTrusted || u.restricted {
		return state.Mode
	}
	return settings.Off
}

// run runs a story second by second. It returns the modes, all that the Ushers log and report, how many connections
// were lost, and the API server.
func (s story) run(t *testing.T) (modes, lines []string, lost int, api *apiServer) {
	a := newAPIServer(t)
	a.record = &corev1.ConfigMap{}
	if len(s.ushers) == 0 {
		s.ushers = []process{{}}
	}
	ushers := map[string]*usher{}
	var current serviceEvent
	for second := range int(s.end * 60) {
		now := start.Add(time.Duration(second) * time.Second)
		minute := float64(second) / 60
		changed := false
		for _, c := range s.changes {
			if c.minute != minute {
				continue
			}
			changed, current.err = true, nil
			if c.service == nil {
				current.err = fmt.Errorf("down")
				continue
			}
			a.set(c.service)
			current.service = versioned(c.service.DeepCopy(), len(a.history)).service
		}
		for _, p := range s.ushers {
			u := ushers[p.name]
			switch {
			case minute < p.begin || p.end > 0 && minute >= p.end:
				delete(ushers, p.name)
				continue
			case u == nil:
				u = newUsher(t, p.name, a, s, now)
				ushers[p.name] = u
			}
			u.time, u.restricted = now, s.restricted && (s.until == 0 || minute < s.until)
			awake := changed || u.event == (serviceEvent{})
			u.event, u.pending = current, awake
			awake = u.report() || awake
			newLines, newModes := u.advance(awake)
			prefix := strings.TrimSpace(now.Sub(start).String() + " " + p.name)
			for _, mode := range newModes {
				modes = append(modes, prefix+" "+mode)
			}
			for _, line := range newLines {
				lines = append(lines, prefix+" "+line)
			}
		}
		for _, f := range s.flows {
			if minute < f.begin || minute >= f.end || second%int(f.every) != 0 {
				continue
			}
			for name, u := range ushers {
				if (f.ushers == "" || f.ushers == name) && u.connect(f) {
					lost++
				}
			}
		}
	}
	return modes, lines, lost, a
}

// TestStories runs all stories, and compares what Ushers log and report with testdata/evidence.txt.
func TestStories(t *testing.T) {
	texts := make([]string, len(stories))
	t.Run("all", func(t *testing.T) {
		for i, s := range stories {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				texts[i] = s.check(t)
			})
		}
	})
	if len(texts) > 0 && slices.Contains(texts, "") {
		return // not all of them ran
	}
	compareText(t, "testdata/evidence.txt", strings.Join(texts, "\n"))
}

// check runs the story and returns its text.
func (s story) check(t *testing.T) string {
	modes, lines, lost, api := s.run(t)
	if !slices.Equal(modes, s.want) {
		t.Errorf("modes\n%q, want\n%q", modes, s.want)
	}
	if lost > s.maxLost {
		t.Errorf("%d connections through the load balancer were lost, want at most %d", lost, s.maxLost)
	}
	text := fmt.Sprintf("# %s\n%s\n", s.name, strings.Join(lines, "\n"))
	if s.record {
		text += fmt.Sprintf("reads and writes of the record: %d, %d\n", api.reads, api.record.Generation)
	}
	if lost > 0 {
		text += fmt.Sprintf("lost connections: %d\n", lost)
	}
	return text
}

func compareText(t *testing.T, path, text string) {
	t.Helper()
	if golden.Updating() {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s -, now + (go test -update writes it):\n%s", path, diff)
	}
}
