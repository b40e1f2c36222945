package listeners

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/testing/golden"
	"github.com/usherproxy/usher/xds"
)

// TestVersions compares the version of each resource of each case with testdata/versions.txt. An Envoy that connects again
// says which versions it has. So a resource whose version changes here is sent to every Envoy after the upgrade, although
// nothing in Consul has changed.
func TestVersions(t *testing.T) {
	var lines []string
	for _, name := range golden.Cases(t, testdata) {
		for _, c := range compileFixture(t, golden.Input(t, testdata, name)) {
			r := c.resources
			lines = slices.Concat(lines,
				versions(t, name, xds.Secret, r.Secrets), versions(t, name, xds.TokenBucket, r.TokenBuckets),
				versions(t, name, xds.Cluster, r.Clusters), versions(t, name, xds.Endpoint, r.Endpoints),
				versions(t, name, xds.Listener, r.Listeners), versions(t, name, xds.Route, r.Routes))
		}
	}
	slices.Sort(lines)
	got := strings.Join(slices.Compact(lines), "")
	file := filepath.Join(testdata, "versions.txt")
	if golden.Updating() {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("after an upgrade, Envoys are sent other bytes for the same input (-before +now). If that is meant, run the test "+
			"with -update, and say in a file of changes/ what Envoys are sent:\n%s", diff)
	}
}

// versions returns a line for each resource: case, type, name and version. Envoys of several releases or instances may get
// several versions.
func versions[M interface {
	comparable
	proto.Message
}](t *testing.T, of string, typ xds.Type, messages ordered.Map[M]) []string {
	t.Helper()
	var lines []string
	for name, m := range messages.All() {
		r, err := xds.NewResource(typ, name, m)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%s %s %s %.16s\n", of, typ, name, r.Version()))
	}
	return lines
}
