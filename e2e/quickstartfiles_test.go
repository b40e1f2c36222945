//go:build e2e

package e2e

import (
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/pages"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestQuickstartWithFiles follows docs/quickstart-files.md on a machine without a network.
func TestQuickstartWithFiles(t *testing.T) {
	t.Parallel()
	r := pages.NewReader(t, pages.Options{
		Shell: testprocess.Command{Host: lab.NewIsolatedHost(t), Env: []string{programs(t)}},
		Fails: map[string]int{"usher validate gateways": 1},
	})
	r.Follow(t, pages.Page(t, "docs/quickstart-files.md"))
}

// programs is a PATH that has usher and envoy, too.
func programs(t *testing.T) string {
	t.Helper()
	return lab.Path(testprocess.Usher(t), lab.EnvoyBinary(t, lab.EnvoyNew))
}
