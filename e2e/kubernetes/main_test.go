//go:build kubernetes

package kubernetes

import (
	"os"
	"testing"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
)

// A container starts as this binary.
func TestMain(m *testing.M) {
	cluster.Init()
	os.Exit(m.Run())
}
