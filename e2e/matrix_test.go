//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
)

// TestPROXYProtocolMatrix executes testdata/proxyprotocol.txt: for every preface
// and setting, trusted and untrusted addresses, IPv4 and IPv6, and all Envoys,
// the answer, the client's address in the access log and the one at the service
// are those of the table.
func TestPROXYProtocolMatrix(t *testing.T) {
	t.Parallel()
	table := readMatrixTable(t)
	l := lab.StartTrustLab(t, table.listeners(), lab.Envoys...)
	for _, gateway := range l.Gateways {
		for _, protocol := range matrixProtocols {
			t.Run(fmt.Sprintf("envoy %s, %s", gateway.Version, protocol), func(t *testing.T) {
				t.Parallel()
				runCells(t, l, table, matrixCells(l, table, gateway, protocol))
			})
		}
	}
}

// matrixCell is a probe, and the word that the table has for it.
type matrixCell struct {
	lab.Probe
	word string
}

// matrixCells are all cells of the table for one Envoy and protocol.
func matrixCells(l *lab.TrustLab, table matrixTable, gateway lab.TrustGateway, protocol string) []matrixCell {
	var cells []matrixCell
	for _, m := range l.Listeners {
		if m.Protocol != protocol {
			continue
		}
		for i, column := range table.columns {
			cells = append(cells, columnCells(l, table, i, column.probes(l, gateway, m))...)
		}
	}
	return cells
}

// columnCells are the cells of one column, each of the probes with each of the
// prefaces.
func columnCells(l *lab.TrustLab, table matrixTable, column int, probes []lab.Probe) []matrixCell {
	var cells []matrixCell
	for _, p := range probes {
		for _, row := range table.rows {
			p.Preface = lab.PrefaceNamed(row.preface)
			cells = append(cells, matrixCell{Probe: l.NewProbe(p), word: row.words[column]})
		}
	}
	return cells
}

// runCells makes the connections of the cells, waits until the access log has
// all that it has to have, and reports each cell that differs.
func runCells(t *testing.T, l *lab.TrustLab, table matrixTable, cells []matrixCell) {
	t.Helper()
	begin := time.Now()
	probes, want := make([]lab.Probe, len(cells)), make([]lab.Observation, len(cells))
	for i, cell := range cells {
		probes[i], want[i] = cell.Probe, table.words[cell.word][cell.Listener.Protocol]
	}
	seen, lines := l.Observe(t, probes, func(i int) bool { return !lab.Allows(want[i].Log, "-") })
	for i, cell := range cells {
		cell.WantDownstreamLogged(t, lines)
		if !seen[i].Matches(want[i]) {
			t.Errorf("%v: (%v), want %q (%v)", cell.Probe, seen[i], cell.word, want[i])
		}
	}
	t.Logf("%d cells in %d ms", len(cells), time.Since(begin).Milliseconds())
}
