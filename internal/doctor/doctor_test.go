package doctor

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/probe"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/status"
	"github.com/usherproxy/usher/internal/testing/messages"
)

var now = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// report is a probe's report with one address.
func report(c probe.Conclusion) *probe.Report {
	c.Mode = c.Finding.Mode()
	return &probe.Report{Target: "10.0.0.5:8080", Results: []probe.Result{{
		Conclusion: c, Meaning: probe.Meaning{Headline: "It is " + string(c.Finding) + ".", With: "Every request is answered with 400.", Remedy: "Check the address."},
	}}}
}

// known are facts of a gateway whose Envoy, Usher and Consul have no fault. Its listener has the mode.
func known(mode string) *Facts {
	f := &Facts{Now: now, EnvoyAdmin: "http://127.0.0.1:19001", Gateway: gateway.ID{Name: "edge"}, Port: 8080}
	f.Listener.Facts = report(probe.Conclusion{Finding: probe.Finding(mode), HTTP: true, Envoy: true, Versions: []string{"v1", "v2"}})
	f.Consul.Facts = &consul.Inspection{
		Version: "1.22.0", Token: consul.TokenKnown, Accessor: "1234", Gateways: []string{"edge", "other"},
		Entry:     &gateway.Entry{Name: "edge", Listeners: []gateway.Listener{{Port: 8080}}},
		Instances: []consul.RegisteredInstance{{Node: "n1", ServiceID: "edge-1"}},
	}
	f.Envoy.Facts = &Envoy{Release: "1.40.0", ServiceID: "edge-1", Gateway: gateway.ID{Name: "edge"}, XDS: true, Over: 3 * time.Second, Before: map[string]uint64{}, After: map[string]uint64{}}
	f.Usher.Facts = &Usher{
		State: status.State{
			Time: now, Usher: status.Usher{Version: "v1.0.0", Ready: true}, Source: status.Source{Answers: true},
			Gateways: []status.Gateway{{Name: "edge", Listeners: []status.Listener{{Port: 8080, Mode: status.Mode{Asked: "auto", InForce: mode}, Place: "the default"}}}},
			Envoys:   []status.Envoy{{Gateway: "edge", ServiceID: "edge-1", Release: "1.40.0", Address: "10.0.0.5"}},
		},
		Before: map[Reported]uint64{}, After: map[Reported]uint64{}, HeadersOnly: map[GatewayPort]bool{},
	}
	return f
}

const proxyPrefix = "proxy_proto.http_10_0_0_5_8080."

// hcl is the config file that gives the listener settings.
func hcl(inner string) string {
	return "gateway \"edge\" {\n  usher {\n    listeners {\n      \"8080\" { proxy_protocol { " + inner + " } }\n    }\n  }\n}\n"
}

// addPolicy is the command that adds rules to the token.
func addPolicy(rules string) string {
	return "consul acl policy create -name usher-edge-more -rules - <<'EOF'\n" + rules + "EOF\nconsul acl token update -accessor-id 1234 -append-policy-name usher-edge-more"
}

const newTokenCommand = "consul acl policy create -name usher-edge -rules - <<'EOF'\n" +
	"service \"edge\" {\n  policy = \"write\"\n}\nservice_prefix \"\" {\n  policy = \"read\"\n}\nnode_prefix \"\" {\n  policy = \"read\"\n}\nEOF\n" +
	"consul acl token create -description usher -policy-name usher-edge"

const registerEdge = "consul connect envoy -gateway=ingress -register -service edge -address '{{ GetPrivateIP }}:8888' -grpc-addr http://127.0.0.1:18000"

var writeEdge = consul.MissingPermission{
	Name: `service:write on "edge"`, Without: "Consul issues Usher no certificates for this gateway", Rule: "service \"edge\" {\n  policy = \"write\"\n}\n",
}

// checkCase is one change of facts without a fault, and what is found then.
type checkCase struct {
	name   string
	mode   string
	change func(*Facts)
	want   string // severity and check of each finding
	has    string // a part of the first one, with its evidence
	hasNot string // no part of it
	remedy string // its command, or its HCL
	fine   string // a part of what is fine
	ill    string // no part of what is fine
}

func grow(f *Facts, name string, by uint64) {
	f.Envoy.Facts.Before[name], f.Envoy.Facts.After[name] = 7, 7+by
}

func throughBalancer(f *Facts, finding probe.Finding) {
	f.Balancer.Facts = report(probe.Conclusion{Finding: finding})
}

func behindService(f *Facts, mode settings.Mode) {
	f.Plan.Facts = &Plan{Service: gateway.KubernetesService{Namespace: "consul", Name: "edge"}, ServiceModes: map[int]settings.Mode{8080: mode}}
}

func usherProblem(f *Facts, s problem.Severity, where, what string) {
	f.Usher.Facts.Problems = append(f.Usher.Facts.Problems, status.Problem{Gateway: "edge", Severity: s, Where: where, What: what})
}

func setIn(place, asked string) func(*Facts) {
	return func(f *Facts) {
		l := &f.Usher.Facts.Gateways[0].Listeners[0]
		l.Place, l.Asked = place, asked
	}
}

// problemText is one of Usher's problems about connections, as internal/controlplane writes it.
func problemText(part string) string {
	text, err := os.ReadFile("../controlplane/testdata/messages.golden")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(text)) {
		if _, what, ok := strings.Cut(strings.TrimSpace(line), part); ok {
			return part + what
		}
	}
	panic("no problem of internal/controlplane has " + part)
}

func TestChecks(t *testing.T) {
	for _, tc := range slices.Concat(agreement, parts) {
		t.Run(tc.name, func(t *testing.T) {
			r := tc.diagnose()
			var got []string
			for _, f := range r.Findings {
				got = append(got, f.Severity.String()+" "+f.Check)
			}
			if strings.Join(got, ", ") != tc.want {
				t.Fatalf("got the findings %q, want %q:\n%s", got, tc.want, text(t, r))
			}
			if tc.want != "" {
				f := r.Findings[0]
				if all := f.What + "\n" + strings.Join(f.Evidence, "\n") + "\n" + f.Remedy.Text; !strings.Contains(all, tc.has) {
					t.Errorf("got %q, want %q in it", all, tc.has)
				} else if tc.hasNot != "" && strings.Contains(all, tc.hasNot) {
					t.Errorf("got %q, want no %q in it", all, tc.hasNot)
				}
				if diff := cmp.Diff(tc.remedy, f.Remedy.Command+f.Remedy.HCL); diff != "" {
					t.Errorf("the remedy: -want +got\n%s", diff)
				}
			}
			if !slices.ContainsFunc(r.Fine, func(f Fine) bool { return strings.Contains(f.What, tc.fine) }) {
				t.Errorf("got fine %q, want %q in it", r.Fine, tc.fine)
			}
			if tc.ill != "" && slices.ContainsFunc(r.Fine, func(f Fine) bool { return strings.Contains(f.What, tc.ill) }) {
				t.Errorf("got fine %q, want no %q in it", r.Fine, tc.ill)
			}
			if wrong := strings.HasPrefix(tc.want, "outage") || strings.HasPrefix(tc.want, "degraded"); (r.Status() == StatusWrong) != wrong {
				t.Errorf("exit status %d", r.Status())
			}
		})
	}
}

func (tc *checkCase) diagnose() *Report {
	f := known(tc.mode)
	if tc.change != nil {
		tc.change(f)
	}
	return Diagnose(f)
}

func text(t *testing.T, r *Report) string {
	t.Helper()
	var b strings.Builder
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestMessages has everything that a diagnosis can say.
func TestMessages(t *testing.T) {
	var lines []string
	for _, tc := range slices.Concat(agreement, parts) {
		r := tc.diagnose()
		for _, f := range r.Findings {
			lines = append(lines, f.What, f.Remedy.Text)
			if !strings.Contains(f.Remedy.Command, "\n") {
				lines = append(lines, f.Remedy.Command)
			}
		}
		for _, f := range r.Fine {
			lines = append(lines, f.What)
		}
	}
	lines = slices.DeleteFunc(lines, func(line string) bool { return line == "" })
	messages.Check(t, lines, "Finding", "Remedy", "fine", "setMode", "newToken")
}

func TestTextHasTheWorstFirst(t *testing.T) {
	f := known("off")
	throughBalancer(f, probe.AddedHeader)
	f.Consul.Facts.Version = "1.14.3"
	f.Certificate = Source[Certificate]{Name: "the certificate", Flag: "--usher-xds-addr HOST:PORT"}
	f.Chart = Source[Chart]{Name: "Kubernetes", Flag: "--kubeconfig FILE", Asked: true, Err: errors.New("no answer")}
	want := `outage: The load balancer sends PROXY headers, and listener 8080 of gateway "edge" does not look for them. Every request is answered with 400.
  What shows it:
    the probe: It is off.
    the probe through the load balancer: It is 400 to all.
  What to do: Let the listener accept them. Add this to Usher's config file (--config). If the file has a block for this gateway already, put the setting into that block.

gateway "edge" {
  usher {
    listeners {
      "8080" { proxy_protocol { mode = "permissive" } }
    }
  }
}

notice: Consul 1.14.3 is older than 1.15, with which Usher is tested.
  What shows it:
    Consul's /v1/agent/self
  What to do: Upgrade Consul.

fine: Consul knows the token, and it has what Usher needs for gateway "edge"
fine: Consul has the ingress-gateway entry "edge", with the ports 8080
fine: registered instances of gateway "edge": 1, and none is critical
fine: Usher v1.0.0 is ready
fine: Usher has no problem, holds no listener back, and no Envoy rejects an update
fine: Envoys of gateway "edge" that Usher serves: 1

Not looked at:
  the certificate: name it with --usher-xds-addr HOST:PORT
  Kubernetes: no answer (--kubeconfig FILE)
`
	if diff := cmp.Diff(want, text(t, Diagnose(f))); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestExitStatus(t *testing.T) {
	named := Unseen{Failed: true}
	for _, tc := range []struct {
		report Report
		want   int
	}{
		{Report{}, StatusUnseen},
		{Report{Fine: []Fine{{}}}, StatusFine},
		{Report{Fine: []Fine{{}}, Unseen: []Unseen{{}}}, StatusFine},
		{Report{Fine: []Fine{{}}, Unseen: []Unseen{named}}, StatusUnseen},
		{Report{Findings: []Finding{{Severity: problem.Notice}}}, StatusFine},
		{Report{Findings: []Finding{{Severity: problem.Notice}}, Unseen: []Unseen{named}}, StatusUnseen},
		{Report{Findings: []Finding{{Severity: problem.Degraded}}, Unseen: []Unseen{named}}, StatusWrong},
		{Report{Findings: []Finding{{Severity: problem.Outage}}}, StatusWrong},
	} {
		if got := tc.report.Status(); got != tc.want {
			t.Errorf("%+v: exit status %d, want %d", tc.report, got, tc.want)
		}
	}
}

// TestNothingIsKnown has no facts at all, and says which flags give some.
func TestNothingIsKnown(t *testing.T) {
	f := &Facts{
		Listener: Source[probe.Report]{Name: "the gateway's listener", Flag: "HOST:PORT"},
		Usher:    Source[Usher]{Name: "Usher", Flag: "--usher-admin-addr", Err: errors.New("refused")},
	}
	r := Diagnose(f)
	out, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"findings":[],"fine":[],"not_looked_at":[{"source":"the gateway's listener","flag":"HOST:PORT"},{"source":"Usher","why":"refused","flag":"--usher-admin-addr"}]}`
	if got := string(out); got != want || r.Status() != StatusUnseen {
		t.Errorf("exit status %d, got %s, want %s", r.Status(), got, want)
	}
	if got := f.kindOf("cluster.local_agent.upstream_cx_total"); got != "" {
		t.Errorf("another counter counts %q", got)
	}
}

// TestCommandsChangeTheFile runs the commands for files: the file that a link names gets the setting, and no line of JSON.
func TestCommandsChangeTheFile(t *testing.T) {
	for _, tc := range []struct{ name, before, after string }{
		{"spaces", "mode = \"off\"", "mode = \"permissive\""},
		{"a tab", "mode\t=\t\"off\"", "mode\t=\t\"permissive\""},
		{"YAML", "mode: off", "mode: permissive"},
		{"JSON", `{"mode": "off"}`, `{"mode": "off"}`},
		{"a misspelt block", "gateway\t\"gateway\" {", "gateway\t\"gateways\" {"},
		{"a misspelt key of JSON", `{"gateway": {"gateway": {}}}`, `{"gateway": {"gateway": {}}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			file, link := filepath.Join(dir, "file"), filepath.Join(dir, "usher's.hcl")
			if err := os.WriteFile(file, []byte(tc.before), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(file, link); err != nil {
				t.Fatal(err)
			}
			f := known("off")
			setIn(link+":1", "off")(f)
			command := f.setMode("", "permissive").Command
			if strings.Contains(tc.before, "gateway") {
				command = correctName(link+`:1: gateway "gateway"`, `(did you mean "gateways"?)`).Command
			}
			if out, err := exec.CommandContext(t.Context(), "sh", "-ec", command).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", command, err, out)
			}
			if got, err := os.ReadFile(file); err != nil || string(got) != tc.after {
				t.Errorf("%s: got %q, %v, want %q", command, got, err, tc.after)
			}
		})
	}
}

// TestARefusedVersionIsAHeader: a load balancer whose headers have a version that is refused does send some.
func TestARefusedVersionIsAHeader(t *testing.T) {
	f := known("permissive")
	grow(f, proxyPrefix+"versions.v1.disallowed", 3)
	grow(f, proxyPrefix+"not_found_allowed", 3)
	if out := text(t, Diagnose(f)); !strings.Contains(out, "The mode strict would close connections") || strings.Contains(out, "sends no PROXY headers") {
		t.Errorf("got\n%s", out)
	}
}
