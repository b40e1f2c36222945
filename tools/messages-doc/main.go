// Command messages-doc writes the page of all messages (docs/messages.md): what
// the tests of each package have written to its testdata/messages.golden.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// sections are the packages that speak to operators, and what they speak about.
var sections = []struct{ dir, title, about string }{
	{"cmd/usher", "The command line", "`usher` prints most of these and exits. Envoys get those about `x-consul-token`."},
	{"internal/bootstrap", "Bootstraps", "What is wrong with an option of `usher bootstrap`."},
	{"internal/probe", "Probes", "What `usher probe` refuses, what it concludes from the answers of a listener, and what to do then."},
	{"internal/cutover", "Cutovers", "Why `usher cutover` does not begin (`REFUSED`) or ends early."},
	{"internal/doctor", "Diagnoses", "What `usher doctor` finds, what is fine, and what to do."},
	{"internal/doctor/collect", "What a diagnosis cannot look at", "Why `usher doctor` has no facts from a source."},
	{"internal/adminport", "Admin ports", "Why Usher gets nothing from the admin port of an Usher or an Envoy; other messages contain these."},
	{"internal/consulchart", "Values of the Consul chart", "What `usher helm-values` refuses in values, what it prints as a notice, and what `--check` finds in a cluster."},
	{"internal/configfile", "The config file", "What is wrong in the file that `--config` names."},
	{"internal/settings", "Settings", "What is wrong under the key `usher`, wherever it is written."},
	{"internal/configtree", "Files", "What is wrong in the syntax of a file: HCL, JSON or YAML."},
	{"internal/configdir", "Config entries and services in files", "What is wrong in the directory that `--config-dir` names."},
	{"consul", "Consul", "What Usher cannot read from Consul, or cannot use."},
	{"internal/tokenreview", "Service account tokens", "Why Kubernetes does not accept the token of an Envoy (`--token-review`)."},
	{"internal/admission", "The admission webhook", "Why Kubernetes does not create the pod of a gateway (`--webhook-addr`). `kubectl describe replicaset` shows it."},
	{"internal/loadbalancer", "Load balancers", "What is wrong with the annotations of a Service."},
	{"internal/kubeapi", "Kubernetes' API server", "Why Usher cannot read or write there; other messages contain these."},
	{"internal/reportkey", "The key of connection reports", "What is wrong with the Secret of `--connection-report-key-secret`."},
	{"internal/evidence", "Reports of connections", "Why Usher does not take what an Envoy reports. `envoy refused` in Usher's log has it."},
	{"listeners", "Listeners", "Why a listener, a route or a cluster is held back, or goes out with less than was asked for."},
	{"internal/accesslog", "Access logs", "What is wrong in a format, a filter or a sink."},
	{"internal/controlplane", "Gateways and their Envoys", "What keeps an Envoy from its configuration."},
	{"xds", "Streams", "`stream:` is the status that an Envoy gets, and writes to its own log. `log:` is in Usher's log. `start:` ends Usher at its start."},
}

const head = `# Messages

<!-- Written by "make generate" from */testdata/messages.golden, which the tests write. -->

Every problem that Usher reports, with examples of names.
A problem says where it is, what is wrong and what to do.
` + "`usher_config_problems`" + ` counts problems.
In the log, a problem is one line with ` + "`where=`" + ` and ` + "`what=`" + `; search this page for a few words of it, without names and quotes.
`

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: messages-doc ROOT FILE")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write(root, file string) error {
	var page strings.Builder
	page.WriteString(head)
	for _, s := range sections {
		lines, err := os.ReadFile(filepath.Join(root, s.dir, "testdata", "messages.golden"))
		if err != nil {
			return err
		}
		fmt.Fprintf(&page, "\n## %s\n\n%s\n\n```text\n%s```\n", s.title, s.about, lines)
	}
	return os.WriteFile(file, []byte(page.String()), 0o644)
}
