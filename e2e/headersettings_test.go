//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// headerSetting is a setting that changes what services see, beyond what PROXY
// protocol does.
type headerSetting struct {
	name string // as docs/client-address.md has it
	text string // of the object usher
	// header is one of a request that says https and 192.0.2.1 of itself, and
	// value what becomes of it; CLIENT stands for the client's address.
	header, value string
	// tlsHeader is a PROXY header that the setting needs; "" for none.
	tlsHeader string
}

var headerSettings = []headerSetting{
	{"`xff = \"append\"`", `client_address { xff = "append" }`, "X-Forwarded-For", "192.0.2.1,CLIENT", ""},
	{"`xff = \"overwrite\"`", `client_address { xff = "overwrite" }`, "X-Forwarded-For", "CLIENT", ""},
	{"`trusted_hops = 1`", `client_address { trusted_hops = 1 }`, "X-Forwarded-For", "192.0.2.1,CLIENT", ""},
	{"`forwarded_proto = \"connection\"`", `client_address { forwarded_proto = "connection" }`, "X-Forwarded-Proto", "http", ""},
	{"`forwarded_proto = \"trust\"`", `client_address { forwarded_proto = "trust" }`, "X-Forwarded-For", "192.0.2.1,CLIENT", ""},
	{"`forwarded_proto { https_ports = [8080] }`", `client_address { forwarded_proto { https_ports = [8080] } }`, "X-Forwarded-For", "192.0.2.1,CLIENT", ""},
	{
		name: "`forwarded_proto = \"proxy_protocol\"`, client with TLS", text: `client_address { forwarded_proto = "proxy_protocol" }`,
		header: "X-Forwarded-For", value: "192.0.2.1,CLIENT", tlsHeader: lab.HeaderWithTLVs(lab.SSLTLV(lab.SSLFlagTLS, 0)),
	},
	{"`xff = \"keep\"`", `client_address { xff = "keep" }`, "X-Forwarded-Proto", "http", ""},
	{
		"`client_address.trusted_cidrs`, for these", `client_address { trusted_cidrs = ["` + lab.BalancerIP + `", "10.1.2.3"] }`,
		"X-Forwarded-For", "192.0.2.1,CLIENT", "",
	},
	{
		"`client_address.header = \"true-client-ip\"`, for others",
		`client_address { trusted_cidrs = "192.0.2.0/24" header = "true-client-ip" }`, "X-Forwarded-For", "192.0.2.1,CLIENT", "",
	},
	{"`trusted_cidrs`, for others", `proxy_protocol { mode = "permissive", trusted_cidrs = "192.0.2.0/24" }`, "X-Forwarded-For", "CLIENT", ""},
}

// TestHeadersOfSettings compares all headers that services see with every
// setting, with PROXY protocol on and off, with those behind Consul's own
// gateway. Each difference is in a table of docs/client-address.md: that of the
// setting, or that of PROXY protocol. The access log has the client that follows
// from the setting, by the connection or by the header of a trusted hop.
func TestHeadersOfSettings(t *testing.T) {
	t.Parallel()
	for _, version := range []string{lab.EnvoyNew, lab.EnvoyOld} {
		t.Run("envoy "+version, func(t *testing.T) {
			t.Parallel()
			l, paths := startHeaderLab(t, lab.ConsulNew, version)
			headed, plain := paths[1], paths[2]
			for _, s := range headerSettings {
				if s.tlsHeader == "" {
					t.Run(s.name+" without a PROXY header", func(t *testing.T) { l.checkSetting(t, s, plain) })
				}
				on, headed := s, headed
				if s.tlsHeader != "" {
					headed.usher.Proxy, headed.client = lab.Preface{Bytes: s.tlsHeader}, lab.HeaderClient.Addr().String()
				}
				if !strings.HasPrefix(s.text, "proxy_protocol") {
					on.text += ` proxy_protocol { mode = "strict" }`
				} else {
					headed.client = plain.client // what the header says is not believed
				}
				t.Run(s.name+" with a PROXY header", func(t *testing.T) { l.checkSetting(t, on, headed) })
			}
		})
	}
}

// checkSetting compares what services see once the setting is in force.
func (l *headerLab) checkSetting(t *testing.T, s headerSetting, path headerPath) {
	t.Helper()
	plain := path
	plain.usher.Proxy = nil
	l.inForce(t, headerSetting{header: "X-Forwarded-For", value: "192.0.2.1"}, plain)
	l.inForce(t, s, path)
	l.rows = documentedRowsOf(t, s.name)
	l.compare(t, path)
	l.wantRowsSeen(t)

	c := path.usher
	c.Path, c.Header = lab.NewPath(), http.Header{"X-Forwarded-For": {lab.ForgedIP + ", 192.0.2.1"}}
	c.MustDo(t).WantHello(t)
	want := path.client
	if strings.Contains(s.text, "trusted_hops") || strings.Contains(s.name, "for these") {
		want = "192.0.2.1"
	}
	if got := l.gateway.Log.WaitRequest(t, c.Path).IP(t, "downstream_remote_address"); got != want {
		t.Errorf("access log has %s for the client, want %s", got, want)
	}
}

// inForce writes a setting, and waits until requests show it.
func (l *headerLab) inForce(t *testing.T, s headerSetting, path headerPath) {
	t.Helper()
	l.Consul.WriteEntry(t, testprocess.ReadFile(t, "testdata/lab/proxy-defaults.hcl")+"Config { usher { "+s.text+" } }\n")
	c := path.usher
	c.Header = http.Header{"X-Forwarded-For": {"192.0.2.1"}, "X-Forwarded-Proto": {"https"}}
	want := strings.ReplaceAll(s.value, "CLIENT", path.client)
	testprocess.Eventually(t, s.name+" is in force", testprocess.ChangeDeadline, func() error {
		const consecutive = 10
		for range consecutive {
			c.Path = lab.NewPath()
			if got, err := c.Do(t.Context()); err != nil || got.Status != http.StatusOK {
				return fmt.Errorf("the answer is %d (%w)", got.Status, err)
			}
			if seen := strings.Join(l.Echo.Received(t, c.Path).Header.Values(s.header), "|"); seen != want {
				return fmt.Errorf("the service gets %s %q, want %q", s.header, seen, want)
			}
		}
		return nil
	})
}

var settingRow = regexp.MustCompile("(?m)^\\| (`[^|]*) \\| (`[a-z][^|]*`) \\| ([^|]*) \\| ([^|]*) \\| ([^|]*) \\|")

// documentedRowsOf are the rows of the table of PROXY protocol, with those of
// the table of settings in their place that are about the setting. A row that
// says "this, else that" is two; one without a difference is none.
func documentedRowsOf(t *testing.T, setting string) map[headerRow]bool {
	t.Helper()
	rows := documentedRows(t)
	for _, cells := range settingRow.FindAllStringSubmatch(testprocess.ReadFile(t, "../docs/client-address.md"), -1) {
		if cells[1] != setting && cells[1] != strings.Replace(setting, "8080", "443", 1) {
			continue
		}
		for row := range rows {
			if row.header == cells[2] && row.sent == cells[3] {
				delete(rows, row)
			}
		}
		for usher := range strings.SplitSeq(cells[5], ", else ") {
			if usher != cells[4] {
				rows[headerRow{cells[2], cells[3], cells[4], usher}] = false
			}
		}
	}
	return rows
}
