package configdir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/orderedcmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// snapshots compares snapshots and what is in them; nil and empty are equal.
var snapshots = cmp.Options{cmp.AllowUnexported(settings.Layer{}), cmpopts.IgnoreFields(settings.Layer{}, "Places"), cmpopts.IgnoreFields(gateway.Instance{}, "AccessLogsAt"), orderedcmp.Entries[*gateway.Endpoints](), cmpopts.EquateEmpty()}

// tree is the content of a directory: names of files and their text.
type tree map[string]string

// write makes a directory of the files.
func write(t *testing.T, files tree) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		put(t, filepath.Join(dir, name), text)
	}
	return dir
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// snapshotOf loads the files and returns the snapshot of the gateway.
func snapshotOf(t *testing.T, name string, files tree) *gateway.Snapshot {
	t.Helper()
	s := NewSource(write(t, files), Options{})
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	return s.current().snapshot(gateway.ID{Name: name}, "dir")
}

func testdata(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const staticServer = `service { name = "static-server" address = "10.1.0.7" port = 8080 }`

// problemsOf loads dir and returns the problems in the gateway's snapshot, with
// DIR for the directory's name.
func problemsOf(t *testing.T, dir, name string) []string {
	t.Helper()
	s := NewSource(dir, Options{})
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range s.current().snapshot(gateway.ID{Name: name}, dir).Problems {
		out = append(out, strings.ReplaceAll(p.String(), dir, "DIR"))
	}
	return out
}
