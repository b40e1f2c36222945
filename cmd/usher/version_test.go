package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/status"
)

func TestVersionNamesTheBuild(t *testing.T) {
	commit := func(modified string) []debug.BuildSetting {
		return []debug.BuildSetting{{Key: "vcs.modified", Value: modified}, {Key: "vcs.revision", Value: "535060f"}}
	}
	for _, tc := range []struct {
		name, main, set string
		settings        []debug.BuildSetting
		want            string
	}{
		{"in a checkout with a tag", "v1.2.3", "", commit("false"), "usher v1.2.3 (535060f, "},
		{"in a checkout with changes", "v1.2.4-0.20261129+dirty", "", commit("true"), "usher v1.2.4-0.20261129+dirty (535060f-dirty, "},
		{"by go install", "v1.2.3", "", nil, "usher v1.2.3 (unknown commit, "},
		{"from an archive of the source", "(devel)", "", nil, "usher devel (unknown commit, "},
		{"by a test", "", "", nil, "usher devel (unknown commit, "},
		{"by a packager", "(devel)", "v1.2.3-1", nil, "usher v1.2.3-1 (unknown commit, "},
		{"by a packager in a checkout", "v1.2.2", "v1.2.3-1", commit("false"), "usher v1.2.3-1 (535060f, "},
	} {
		got := buildOf(&debug.BuildInfo{Main: debug.Module{Version: tc.main}, Settings: tc.settings}, tc.set).String()
		if want := tc.want + runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH + ")"; got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", tc.name, got, want)
		}
	}
}

func TestVersionIsPrintedAsLineAndAsJSON(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"--version"}} {
		if out, err := usher(t, args...); err != nil || out != thisBuild().String()+"\n" {
			t.Errorf("usher %v: got %q, %v, want %q", args, out, err, thisBuild())
		}
	}
	out, err := usher(t, "version", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var got build
	if err := json.Unmarshal([]byte(out), &got); err != nil || got != thisBuild() {
		t.Errorf("got %q (%v), want %+v", out, err, thisBuild())
	}
}

func TestBuildIsInTheMetricsTheLogAndTheStatus(t *testing.T) {
	s, b := startServe(t, 0), thisBuild()
	s.waitLog("msg=serving .*version=" + regexp.QuoteMeta(b.Version) + " commit=(unknown|[0-9a-f]+(-dirty)?) go=" + regexp.QuoteMeta(b.GoVersion))
	want := fmt.Sprintf("\nusher_build_info{goversion=%q,revision=%q,version=%q} 1\n", b.GoVersion, b.Commit, b.Version)
	if got := s.get("/metrics"); !strings.Contains(got, want) {
		t.Errorf("/metrics has no %s", want)
	}
	_, answer, _ := strings.Cut(s.get(status.Path), "\n")
	var state status.State
	if err := json.Unmarshal([]byte(answer), &state); err != nil || state.Usher.Version != b.Version || state.Usher.Commit != b.Commit || state.Usher.GoVersion != b.GoVersion {
		t.Errorf("/status has %+v (%v), want %+v", state.Usher, err, b)
	}
	if problems, err := testutil.CollectAndLint(b.metric()); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
