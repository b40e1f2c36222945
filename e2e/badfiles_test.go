//go:build e2e

package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// badFile is a file with a mistake, and what Usher logs about it
// behind the file's path.
type badFile struct{ name, text, where, what string }

// badConfigFiles are bad contents of the file for --config.
func badConfigFiles() []badFile {
	files := []badFile{
		{
			"invalid HCL", "gateway \"ingress-gateway\" {\n  usher {\n    proxy_protocol { mode = \"off\" }\n",
			":2", "this is not HCL: the { in this line is not closed; add a }",
		},
		{
			"unknown block", "gateways \"ingress-gateway\" {}\n",
			":1: gateways", `this key is unknown (did you mean "gateway"?); remove it, or use gateway, usher`,
		},
	}
	for _, bad := range badSettings {
		files = append(files, badFile{
			bad.name, "\ngateway \"ingress-gateway\" {\n  " + bad.usher + "\n}\n",
			`:3: gateway.ingress-gateway.` + bad.where, bad.what,
		})
	}
	return files
}

// strictConfigFile is a file for --config with which the gateway is strict.
const strictConfigFile = "gateway \"ingress-gateway\" {\n  usher { proxy_protocol { mode = \"strict\" } }\n}\n"

// startStrictFileLab starts the lab with this file. write replaces its content.
func startStrictFileLab(t *testing.T) (l *fileLab, file string, write func(text string)) {
	t.Helper()
	l = startFileLab(t, strictConfigFile)
	l.HAProxy.SetHeader(t, lab.SendV2)
	lab.WaitStatus(t, l.call("/"), http.StatusOK)
	file = l.Usher.ConfigFile
	return l, file, func(text string) { lab.WriteFile(t, filepath.Dir(file), filepath.Base(file), text) }
}

// TestBadConfigFile breaks the file for --config while the gateway is strict:
// the gateway stays strict. With the same file, Usher does not start.
func TestBadConfigFile(t *testing.T) {
	t.Parallel()
	l, file, write := startStrictFileLab(t)

	for _, bad := range badConfigFiles() {
		line := `msg=problem ` + lab.LoggedProblem(file+bad.where, bad.what)
		trouble := l.Usher.WantProblem(t, line, func() { write(bad.text) })
		l.wantStrict(t)
		trouble.WantFixed(t, func() { write(strictConfigFile) })
	}
	line := `msg=problem ` + lab.LoggedProblem(file, "cannot be read: no such file or directory; put it back; the last valid content stays in use")
	trouble := l.Usher.WantProblem(t, line, func() { os.Remove(file) })
	l.wantStrict(t)
	trouble.WantFixed(t, func() { write(strictConfigFile) })

	l.Usher.Stop(t)
	for _, bad := range badConfigFiles() {
		write(bad.text)
		got := l.serve(t, "--config-dir", l.Dir, "--config", file)
		if want := "usher: " + file + bad.where + ": " + bad.what + "\n"; got.Code != 1 || got.Stderr != want {
			t.Errorf("%s: exit %d %q, want 1 %q", bad.name, got.Code, got.Stderr, want)
		}
	}
	l.wantStrict(t)
}

// TestMisspeltGatewayKeepsItsSettings misspells a gateway's name in the file for
// --config while the gateway is strict: it stays strict, and a problem has the right name.
func TestMisspeltGatewayKeepsItsSettings(t *testing.T) {
	t.Parallel()
	l, file, write := startStrictFileLab(t)

	line := `msg=problem ` + lab.LoggedProblem(file+`:1: gateway "ingres-gateway"`, `no ingress gateway has this name (did you mean "ingress-gateway"?), `+
		`so the block has no effect; the ingress gateways are "ingress-gateway"; until this is corrected, "ingress-gateway", whose block is gone, keeps the settings that it had`)
	trouble := l.Usher.WantProblem(t, line, func() { write(strings.Replace(strictConfigFile, "ingress-gateway", "ingres-gateway", 1)) })
	l.wantStrict(t)
	trouble.WantFixed(t, func() { write(strictConfigFile) })
	l.wantStrict(t)
}

// serve runs `usher serve` to its end.
func (l *fileLab) serve(t *testing.T, args ...string) testprocess.Result {
	t.Helper()
	return testprocess.Run(t, testprocess.Command{Path: testprocess.Usher(t), Args: append([]string{"serve"}, args...), Host: l.Network.Gateway}, "")
}

// wantStrict wants requests with a PROXY header answered, and connections
// without one closed.
func (l *fileLab) wantStrict(t *testing.T) {
	t.Helper()
	l.call(lab.NewPath()).MustDo(t).WantHello(t)
	plain := lab.Request{From: l.Balancer, To: l.Network.Gateway.Addr(8080), Path: lab.NewPath()}
	if got, err := plain.Do(t.Context()); err == nil {
		t.Errorf("a connection without a PROXY header got %d %q, want it closed", got.Status, got.Body)
	}
}

// TestBadConfigDirectory breaks a file in --config-dir while the gateway is
// strict: the gateway stays strict, and changes apply again once the file is
// correct. With the same file, Usher does not start.
func TestBadConfigDirectory(t *testing.T) {
	t.Parallel()
	l := startFileLab(t, "")
	l.HAProxy.SetHeader(t, lab.SendV2)
	l.writeResources(t, strictMode...)
	lab.WaitStatus(t, l.call("/"), http.StatusOK)
	files := l.badFiles(t)
	for _, bad := range files {
		line := `msg=problem ` + lab.LoggedProblem(filepath.Join(l.Dir, bad.name)+bad.where, bad.what)
		var fix func()
		trouble := l.Usher.WantProblem(t, line, func() { fix = l.breakFile(t, bad) })
		l.wantStrict(t)
		trouble.WantFixed(t, fix)
		l.wantStrict(t)
	}
	l.wantOthersUpdated(t)

	l.Usher.Stop(t)
	for _, bad := range files {
		fix := l.breakFile(t, bad)
		got := l.serve(t, "--config-dir", l.Dir)
		want := "usher: " + filepath.Join(l.Dir, bad.name) + bad.where + ": " + bad.what + "\n"
		if got.Code != 1 || got.Stderr != want {
			t.Errorf("%s: exit %d %q, want 1 %q", bad.name, got.Code, got.Stderr, want)
		}
		fix()
	}
	l.wantStrict(t)
}

// breakFile puts the bad file into the directory; fix removes it.
func (l *fileLab) breakFile(t *testing.T, bad badFile) (fix func()) {
	t.Helper()
	path := filepath.Join(l.Dir, bad.name)
	good, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	l.write(t, bad.name, bad.text)
	return func() {
		if good != nil {
			l.write(t, bad.name, string(good))
		} else if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// badFiles are what can be wrong with the directory's files; name is a file's,
// and text all that is in it.
func (l *fileLab) badFiles(t *testing.T) []badFile {
	t.Helper()
	resources, services := testprocess.ReadFile(t, l.resources()), testprocess.ReadFile(t, filepath.Join(l.Dir, "services.hcl"))
	return []badFile{
		{
			"consul-values.yaml", testprocess.ReadFile(t, "testdata/lab/consul-values-ppv2-tab.yaml"),
			":11", "this line begins with a TAB, and tabs cannot indent YAML; use spaces",
		},
		{
			"services.hcl", services + "services {",
			":4", "this is not HCL: the { in this line is not closed; add a }",
		},
		{
			"custom-resources.yaml", replaceOnce(t, resources, "mode: strict", "mode: stict"),
			":9: usher.proxy_protocol.mode", `"stict" is not allowed (did you mean "strict"?); use "auto", "off", "permissive" or "strict"`,
		},
		{
			"custom-resources.yaml", replaceOnce(t, resources, "mode: strict", "mode: strict\n        modus: 1"),
			":10: usher.proxy_protocol.modus", `this key is unknown; remove it, or use "mode", "versions", "trusted_cidrs", "tlvs", "upstream", "upstream_tlvs" or "server_speaks_first"`,
		},
		{
			"custom-resources.yaml", replaceOnce(t, resources, "accessLogs:", "accesslogs:"),
			":10: spec.accesslogs", `this key is unknown (did you mean "accessLogs"?); remove it, or use accessLogs, config`,
		},
		{
			"custom-resources.yaml", replaceOnce(t, resources, "ServiceDefaults", "ServiceRouter"),
			":16: kind", `"ServiceRouter" is not supported in file mode, which reads IngressGateway, ProxyDefaults, ServiceDefaults, ServiceIntentions; remove the entry`,
		},
	}
}

// wantOthersUpdated has a bad mode and wants that the service's instances are
// followed all the same.
func (l *fileLab) wantOthersUpdated(t *testing.T) {
	t.Helper()
	good := testprocess.ReadFile(t, l.resources())
	line := `msg=problem ` + lab.LoggedProblem(l.resources()+":9: usher.proxy_protocol.mode",
		`"stict" is not allowed (did you mean "strict"?); use "auto", "off", "permissive" or "strict"`)
	trouble := l.Usher.WantProblem(t, line, func() {
		l.write(t, "custom-resources.yaml", replaceOnce(t, good, "mode: strict", "mode: stict"))
	})
	l.writeServices(t, 8081)
	l.waitOnly(t, l.Second)
	l.wantStrict(t)
	trouble.WantFixed(t, func() { l.write(t, "custom-resources.yaml", good) })
}
