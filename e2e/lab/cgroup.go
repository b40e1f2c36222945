//go:build e2e

package lab

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// inMemoryGroup returns the command line that runs a program in a new cgroup with a
// memory limit in bytes.
func inMemoryGroup(t *testing.T, limit int, program string, args []string) (string, []string) {
	t.Helper()
	group := newMemoryGroup(t, limit)
	script := `echo $$ >"$0/cgroup.procs" && exec "$@"`
	return testprocess.Debian(t, "sh", "dash"), append([]string{"-c", script, group, program}, args...)
}

// newMemoryGroup makes a cgroup, of version 1 or 2, without swap, until the test
// ends.
func newMemoryGroup(t *testing.T, limit int) string {
	t.Helper()
	parent, files := "/sys/fs/cgroup", map[string]string{"memory.max": strconv.Itoa(limit), "memory.swap.max": "0"}
	if _, err := os.Stat(filepath.Join(parent, "cgroup.controllers")); err != nil {
		parent, files = "/sys/fs/cgroup/memory", map[string]string{"memory.limit_in_bytes": strconv.Itoa(limit)}
	}
	group := filepath.Join(parent, "usher-e2e-"+rand.Text())
	err := os.Mkdir(group, 0o700)
	if err != nil {
		t.Fatalf("make a cgroup (the e2e tests need root and the memory controller): %v", err)
	}
	t.Cleanup(func() {
		// The process in it was started later, and so has ended.
		if err := os.Remove(group); err != nil {
			t.Errorf("remove the cgroup: %v", err)
		}
	})
	for name, value := range files {
		if err := os.WriteFile(filepath.Join(group, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return group
}

// PeakMemory is the most resident memory that the process has had, in bytes.
func PeakMemory(t *testing.T, pid int) int {
	t.Helper()
	return memory(t, pid, "VmHWM")
}

// Memory is the resident memory of the process, in bytes.
func Memory(t *testing.T, pid int) int {
	t.Helper()
	return memory(t, pid, "VmRSS")
}

func memory(t *testing.T, pid int, field string) int {
	t.Helper()
	for line := range strings.Lines(testprocess.ReadFile(t, fmt.Sprintf("/proc/%d/status", pid))) {
		if text, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(text), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("the kernel has no %s for the process", field)
	return 0
}
