//go:build e2e

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// DataplaneOptions describe a proxy that a real consul-dataplane runs. Its service is in Consul's catalog already.
type DataplaneOptions struct {
	Host      *Host
	Envoy     string // its version
	Address   string // IP address of the server
	Port      int    // gRPC port of the server
	CAFile    string // with the only authority that it trusts
	ProxyID   string // the ID of the service
	Node      string // the node of the service
	Token     string
	AdminPort int      // Envoy's
	Args      []string // more arguments
}

// StartDataplane runs a consul-dataplane, which runs an Envoy, and waits for Envoy's admin port.
func StartDataplane(t *testing.T, o DataplaneOptions) *Envoy {
	t.Helper()
	e := runEnvoy(t, o.AdminPort, testprocess.Command{
		Name: "consul-dataplane of " + o.ProxyID,
		Path: testprocess.Tool(t, "consul-k8s", "consul-dataplane"),
		Args: append([]string{
			"-addresses", o.Address, "-grpc-port", strconv.Itoa(o.Port), "-ca-certs", o.CAFile,
			"-credential-type", "static", "-static-token", o.Token,
			"-proxy-id", o.ProxyID, "-proxy-node-name", o.Node,
			"-envoy-admin-bind-port", strconv.Itoa(o.AdminPort), "-envoy-executable-path", EnvoyBinary(t, o.Envoy),
		}, o.Args...),
		Host: o.Host,
	}, o.Host)
	// Envoy is in a separate process group, and survives a consul-dataplane that is killed.
	for _, pid := range children(t, e.Pid()) {
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) }) // it may have ended by itself
	}
	return e
}

// children returns the processes that a process has started.
func children(t *testing.T, pid int) []int {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, list := range lists {
		content, err := os.ReadFile(list)
		if err != nil {
			continue // of a thread that has ended
		}
		for field := range strings.FieldsSeq(string(content)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, child)
		}
	}
	return pids
}
