//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"
)

// TestPROXYProtocolMatrix executes testdata/proxyprotocol.txt: for every kind of
// preface, every setting and every kind of peer, over IPv4 and IPv6 and on both
// Envoys, it wants the answer, the client's address in the access log and the
// one at the service to be those of the table.
func TestPROXYProtocolMatrix(t *testing.T) {
	t.Parallel()
	table := readMatrixTable(t)
	l := startPeersLab(t, table.listeners())
	for _, gateway := range l.gateways {
		for _, protocol := range matrixProtocols {
			t.Run(fmt.Sprintf("envoy %s, %s", gateway.version, protocol), func(t *testing.T) {
				t.Parallel()
				l.execute(t, table, l.cells(table, gateway, protocol))
			})
		}
	}
}

// matrixCell is a probe, and the word that the table has for it.
type matrixCell struct {
	probe
	word string
}

// cells are all cells of the table for one Envoy and protocol.
func (l *peersLab) cells(table matrixTable, gateway peersGateway, protocol string) []matrixCell {
	var cells []matrixCell
	for _, m := range l.listeners {
		if m.protocol != protocol {
			continue
		}
		for i, column := range table.columns {
			cells = append(cells, l.columnCells(table, i, column.probes(l, gateway, m))...)
		}
	}
	return cells
}

// columnCells are the cells of one column, each of the probes with each of the
// prefaces.
func (l *peersLab) columnCells(table matrixTable, column int, probes []probe) []matrixCell {
	var cells []matrixCell
	for _, p := range probes {
		for _, row := range table.rows {
			p.preface = prefaceOf(row.preface)
			cells = append(cells, matrixCell{probe: l.newProbe(p), word: row.words[column]})
		}
	}
	return cells
}

// execute makes the connections of the cells, waits until the access log has
// all that it has to have, and reports each cell that differs.
func (l *peersLab) execute(t *testing.T, table matrixTable, cells []matrixCell) {
	t.Helper()
	begin := time.Now()
	probes, want := make([]probe, len(cells)), make([]observation, len(cells))
	for i, cell := range cells {
		probes[i], want[i] = cell.probe, table.words[cell.word][cell.listener.protocol]
	}
	seen, lines := l.observe(t, probes, func(i int) bool { return !allows(want[i].log, "-") })
	for i, cell := range cells {
		cell.wantPeerLogged(t, lines)
		if !seen[i].matches(want[i]) {
			t.Errorf("%v: (%v), want %q (%v)", cell.probe, seen[i], cell.word, want[i])
		}
	}
	t.Logf("%d cells in %d ms", len(cells), time.Since(begin).Milliseconds())
}
