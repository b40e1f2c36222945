//go:build e2e

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

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
	want := "# Page\n" + beginMark + "\n```\n2 cores\n```\n" +
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
