//go:build e2e

package e2e

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// matrixTable is testdata/proxyprotocol.txt: what is expected of every kind of
// preface at every kind of listener.
type matrixTable struct {
	words   map[string]map[string]lab.Observation // by word, then by protocol
	columns []matrixColumn
	rows    []matrixRow
}

// matrixColumn is a setting and who connects.
type matrixColumn struct{ mode, versions, from string }

// matrixRow has the words for one preface, one for each column.
type matrixRow struct {
	preface string
	words   []string
}

var matrixProtocols = []string{"http", "https", "tcp"}

// readMatrixTable reads the file. Its parts have a heading in brackets, and the
// fields of a line have two spaces or more between them.
func readMatrixTable(t *testing.T) matrixTable {
	t.Helper()
	table := matrixTable{words: map[string]map[string]lab.Observation{}}
	var heads [][]string
	part := ""
	for line := range strings.Lines(testprocess.ReadFile(t, "testdata/proxyprotocol.txt")) {
		line = strings.TrimSpace(line)
		fields := regexp.MustCompile(`  +`).Split(line, -1)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			part = line
		case part == "[words]":
			table.words[fields[0]] = wordMeaning(t, fields)
		case len(heads) < 3:
			heads = append(heads, fields)
		default:
			table.rows = append(table.rows, matrixRow{fields[0], fields[1:]})
		}
	}
	for i := 1; len(heads) == 3 && i < len(heads[0]); i++ {
		table.columns = append(table.columns, matrixColumn{heads[0][i], heads[1][i], heads[2][i]})
	}
	table.validate(t)
	return table
}

// wordMeaning reads a line of words: an observation for each protocol, as
// "answer, log, service".
func wordMeaning(t *testing.T, fields []string) map[string]lab.Observation {
	t.Helper()
	if len(fields) != 1+len(matrixProtocols) {
		t.Fatalf("the word %q has %d meanings, want one for each of %v", fields[0], len(fields)-1, matrixProtocols)
	}
	meaning := map[string]lab.Observation{}
	for i, protocol := range matrixProtocols {
		parts := strings.Split(fields[i+1], "; ")
		if len(parts) != 3 {
			t.Fatalf("the word %q means %q for %s, want \"answer; log; service\"", fields[0], fields[i+1], protocol)
		}
		meaning[protocol] = lab.Observation{Response: parts[0], Log: parts[1], Service: parts[2]}
	}
	return meaning
}

// validate wants a row for each preface, and in each a known word for each
// column.
func (m matrixTable) validate(t *testing.T) {
	t.Helper()
	var names, rows []string
	for _, p := range lab.Prefaces {
		names = append(names, p.Name)
	}
	for _, row := range m.rows {
		rows = append(rows, row.preface)
		if len(row.words) != len(m.columns) {
			t.Fatalf("the row %q has %d words for %d columns", row.preface, len(row.words), len(m.columns))
		}
		for _, word := range row.words {
			if m.words[word] == nil {
				t.Fatalf("the row %q has the word %q, which is not explained", row.preface, word)
			}
		}
	}
	if !slices.Equal(names, rows) {
		t.Fatalf("the rows are %q, want one for each of %q", rows, names)
	}
}

// listeners are a listener for every policy of the columns and every protocol
// that takes it.
func (m matrixTable) listeners() []lab.TestListener {
	var listeners []lab.TestListener
	for _, protocol := range matrixProtocols {
		for _, column := range m.columns {
			for _, p := range column.policies() {
				l := lab.TestListener{Protocol: protocol, Settings: p}
				if isValid(l) && !slices.Contains(listeners, l) {
					listeners = append(listeners, l)
				}
			}
		}
	}
	return listeners
}

// proxiesElsewhere are HTTP proxies at addresses that do not connect. A listener
// that believes them treats all others as one that believes none.
const proxiesElsewhere = `trusted_cidrs = "203.0.113.0/24" header = "true-client-ip" fail_closed = "yes"`

// policies are the settings that a column is about. With the mode off, proxies
// elsewhere make a difference: Consul's own listener believes X-Forwarded-For.
func (c matrixColumn) policies() []lab.ListenerSettings {
	policies := c.protocolPolicies()
	if c.mode == "off" {
		return policies
	}
	for _, p := range policies {
		p.ClientAddress = proxiesElsewhere
		policies = append(policies, p)
	}
	return policies
}

// protocolPolicies are those of PROXY protocol.
func (c matrixColumn) protocolPolicies() []lab.ListenerSettings {
	p := lab.ListenerSettings{Mode: c.mode}
	if c.versions != "both" && c.versions != "-" {
		p.Versions = c.versions
	}
	trusting := p
	trusting.TrustedCIDRs = true
	switch c.from {
	case "any":
		return []lab.ListenerSettings{p}
	case "untrusted":
		return []lab.ListenerSettings{trusting}
	}
	return []lab.ListenerSettings{p, trusting}
}

// isValid is false for the settings that Usher refuses: a permissive tcp
// listener would pass a header of the other version on as data, and no request
// names a client there.
func isValid(m lab.TestListener) bool {
	if m.Protocol == "tcp" && m.Settings.ClientAddress != "" {
		return false
	}
	return m.Protocol != "tcp" || m.Settings.Mode != "permissive" || m.Settings.Versions == ""
}

// probes are a column's connections to a listener on each of its addresses,
// without a preface. A listener without trusted_cidrs is one that trusts, also
// for the untrusted downstream.
func (c matrixColumn) probes(l *lab.TrustLab, g lab.TrustGateway, m lab.TestListener) []lab.Probe {
	downstreams := []lab.Downstream{l.Trusted, l.Untrusted}
	switch {
	case !slices.Contains(c.policies(), m.Settings):
		return nil
	case m.Settings.ClientAddress != "" && g.Version != lab.EnvoyNew && g.Version != lab.EnvoyOld:
		return nil // a lab has not enough ports for all
	case c.from == "untrusted":
		downstreams = []lab.Downstream{l.Untrusted}
	case m.Settings.TrustedCIDRs:
		downstreams = []lab.Downstream{l.Trusted}
	}
	var probes []lab.Probe
	for _, from := range downstreams {
		for _, address := range g.Addresses {
			probes = append(probes, lab.Probe{Gateway: g, Listener: m, From: from, Address: address})
		}
	}
	return probes
}
