package demo

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTheFirstResourcesAreTheLabsOwn(t *testing.T) {
	l := testLab(t, gatewayPort)
	want, err := os.ReadFile("testdata/custom-resources.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), readConfig(t, l, resourcesFile)); diff != "" {
		t.Errorf("differs from the lab's file (-want +got):\n%s", diff)
	}
}

func TestStrictModeIsTheOnlyChange(t *testing.T) {
	l := testLab(t, 18080)
	before := readConfig(t, l, resourcesFile)
	if err := l.writeResources(modeStrict); err != nil {
		t.Fatal(err)
	}
	const setting = "  config:\n    usher:\n      proxy_protocol:\n        mode: strict\n"
	after := readConfig(t, l, resourcesFile)
	if diff := cmp.Diff(before, strings.Replace(after, setting, "", 1)); diff != "" || after == before {
		t.Errorf("besides the setting there is another change, or no setting (-before +after):\n%s", diff)
	}
	if !strings.Contains(after, "- port: 18080\n") {
		t.Errorf("the gateway's port is not 18080:\n%s", after)
	}
}

func TestTheConfigDirectoryHoldsConfigFilesOnly(t *testing.T) {
	l := testLab(t, gatewayPort)
	if err := l.writeResources(modeStrict); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(l.configDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{"custom-resources.yaml", "services.hcl"}, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestTheServiceIsRegisteredWhereItListens(t *testing.T) {
	l := testLab(t, gatewayPort)
	_, port, err := net.SplitHostPort(l.ports.service.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if text := readConfig(t, l, "services.hcl"); !strings.Contains(text, "port    = "+port+"\n") {
		t.Errorf("port %s is not there:\n%s", port, text)
	}
}

// testLab is a lab of which only the config files are there.
func testLab(t *testing.T, port int) *lab {
	t.Helper()
	l, err := newLab(t.TempDir(), &ports{service: openPort(t, serviceIP), gateway: port})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func readConfig(t *testing.T, l *lab, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(l.configDir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
