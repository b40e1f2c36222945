//go:build e2e

package e2e

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/usherproxy/usher/e2e/lab"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		lab.RemoveRelease()
		os.Exit(code)
	}))
}
