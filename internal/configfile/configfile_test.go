package configfile

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/messages"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const strict = `gateway "edge" {
  usher {
    proxy_protocol { mode = "strict" }
  }
}
`

func write(t *testing.T, path, text string) {
	t.Helper()
	next := path + ".new"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

type badFile struct{ name, text, want string }

func badFiles() []badFile {
	return []badFile{
		{"wrong mode", strings.ReplaceAll(strict, "strict", "on"), `usher.hcl:3: gateway.edge.usher.proxy_protocol.mode: "on" is not allowed; use "auto", "off", "permissive" or "strict"`},
		{"unknown key", "\n\ngateway \"edge\" {\n  proxy_protocol {}\n}\n", `usher.hcl:4: gateway.edge.proxy_protocol: this key belongs inside usher; write gateway "edge" { usher { … } }`},
		{"a setting beside usher", "usher {}\naccess_log {}\n", `usher.hcl:2: access_log: this key belongs inside usher; write usher { … }`},
		{"unknown key of a gateway", "gateway \"edge\" {\n  ushr {}\n}\n", `usher.hcl:2: gateway.edge.ushr: this key is unknown (did you mean "usher"?); remove it, or use usher`},
		{"unknown block", "gateways {}\n", `usher.hcl:1: gateways: this key is unknown (did you mean "gateway"?); remove it, or use gateway, usher`},
		{"no name", "gateway {}\n", `usher.hcl:1: gateway: this block needs the name of one gateway: gateway "<name>" { usher { … } }`},
		{"twice", "gateway \"a\" {}\ngateway \"a\" {}\n", `usher.hcl:2: gateway "a" is already in line 1; merge the two blocks`},
		{"twice, in JSON", `{"usher": {}, "usher": {}}`, `usher.hcl:1: usher: this key is already given at DIR/usher.hcl:1; remove one of the two`},
		{"twice in a list of JSON", "{\"gateway\": [\n{\"a\": {}},\n{\"a\": {}}]}", `usher.hcl:3: gateway "a" is already in line 2; merge the two blocks`},
		{"a config entry", "name = \"global\"\nKind = \"proxy-defaults\"", `usher.hcl:2: this is a config entry or a service definition, and no file of Usher's settings; give it to Consul, or put it into the directory of --config-dir`},
		{"a service definition", "service {\n}", `usher.hcl:1: this is a config entry or a service definition, and no file of Usher's settings; give it to Consul, or put it into the directory of --config-dir`},
		{"a list", "[]", `usher.hcl:1: a list is not allowed; use an object`},
		{"no object", "{\"gateway\":\n {\"a\": 1}}", `usher.hcl:2: gateway.a: 1 is not allowed; use an object`},
		{"YAML", "# settings\nusher:\n  proxy_protocol: {mode: strict}\n", `usher.hcl:2: this is YAML, and the file has to be HCL or JSON; write usher { … } and gateway "<name>" { usher { … } }`},
		{"twice for all", "usher {}\nusher {}\n", `usher.hcl:2: usher is already in line 1; merge the two blocks`},
		{"all, with a name", "usher \"a\" {}\n", `usher.hcl:1: usher: this block takes no name, because it is for all gateways; write usher { … }, or gateway "<name>" { usher { … } }`},
		{"wrong mode for all", "\nusher {\n  proxy_protocol { mode = \"on\" }\n}\n", `usher.hcl:3: usher.proxy_protocol.mode: "on" is not allowed; use "auto", "off", "permissive" or "strict"`},
		{"an escape that is too large", "usher {}\ngateway \"\\400\" {}\n", `usher.hcl:2: this is not HCL: "\400" is neither a number nor a text that HCL understands; correct it`},
		{"a code point that is too large", "usher {\n  proxy_protocol { mode = \"\\U00110000\" }\n}\n", `usher.hcl:2: this is not HCL: "\U00110000" is neither a number nor a text that HCL understands; correct it`},
		{"JSON that is cut off in an escape", `{"usher": "\u12`, `usher.hcl:1: this is not JSON: invalid character ' ' in \u hexadecimal character escape; correct it`},
		{"deeper than a stack", "usher {\n  a = " + strings.Repeat("[", 1<<19), `usher.hcl:1: the file has 524289 brackets; the limit is 50000; check the file for generated or repeated content`},
		{"not HCL", "gateway \"a\" {\n  usher {\n}\n", `usher.hcl:1: this is not HCL: the { in this line is not closed; add a }`},
	}
}

func TestMessages(t *testing.T) {
	var lines []string
	for _, tc := range badFiles() {
		if !strings.Contains(tc.want, "usher.proxy_protocol") { // settings' own
			lines = append(lines, tc.want)
		}
	}
	f := &File{path: "usher.hcl", log: slog.New(slog.DiscardHandler)}
	for _, err := range []error{syscall.EACCES, syscall.ENOENT, syscall.EISDIR} {
		f.update(nil, err)
		lines = append(lines, f.content.Problems[0].String())
	}
	f.setText([]byte(strict))
	f.update(nil, nil)
	lines = append(lines, f.content.Problems[0].String())
	f.keep((&guard.Error{Part: "filewatch", Value: "a bug", At: "x.go:1"}).Error())
	lines = append(lines, f.content.Problems[0].String())
	messages.Check(t, lines, "Add", "keep", "problem.Problem")
}

func TestABadFileIsRefusedAtStart(t *testing.T) {
	for _, tc := range badFiles() {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "usher.hcl")
			write(t, path, tc.text)
			_, err := Open(path, slog.New(slog.DiscardHandler))
			if err == nil {
				t.Fatal("it was read without an error")
			}
			line := strings.ReplaceAll(strings.TrimPrefix(err.Error(), filepath.Dir(path)+"/"), filepath.Dir(path), "DIR")
			if !strings.HasPrefix(line, tc.want) || strings.Contains(line, "\n") {
				t.Errorf("got  %s\nwant %s", line, tc.want)
			}
		})
	}
}

func TestAMissingFileIsRefusedAtStart(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "none.hcl"), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "none.hcl") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

// openStrict opens a file that has the settings strict.
func openStrict(t *testing.T) (path string, f *File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "usher.hcl")
	write(t, path, strict)
	f, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return path, f
}

// run runs the file and returns the contents that it puts.
func run(t *testing.T, f *File) <-chan settings.File {
	t.Helper()
	contents := make(chan settings.File)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- f.Run(ctx, func(c settings.File) {
			select {
			case contents <- c:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return contents
}

func modes(c settings.File) map[string]settings.Mode {
	out := map[string]settings.Mode{}
	if m := c.All.Settings.ProxyProtocol.Mode; m != "" {
		out["every gateway"] = m
	}
	for name, l := range c.Gateways {
		out[name] = l.Settings.ProxyProtocol.Mode
	}
	return out
}

func TestChangesAreFollowedAndABadOneKeepsTheLastValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, f := openStrict(t)
		if diff := cmp.Diff(map[string]settings.Mode{"edge": settings.Strict}, modes(f.Content())); diff != "" {
			t.Fatalf("at start (-want +got):\n%s", diff)
		}
		contents := run(t, f)
		all := "usher { proxy_protocol { mode = \"off\" } }\n"
		other := "gateway \"other\" {\n  usher { proxy_protocol { mode = \"off\" } }\n}\n"
		for _, step := range []struct {
			name, text string
			want       map[string]settings.Mode
			problems   int
		}{
			{"a change", strings.ReplaceAll(strict, "strict", "permissive"), map[string]settings.Mode{"edge": settings.Permissive}, 0},
			{"a wrong mode beside a new block", strings.ReplaceAll(strict, "strict", "on") + other, map[string]settings.Mode{"edge": settings.Permissive, "other": settings.Off}, 1},
			{"broken syntax", "gateway {{{", map[string]settings.Mode{"edge": settings.Permissive, "other": settings.Off}, 1},
			{"for all", all + strict, map[string]settings.Mode{"every gateway": settings.Off, "edge": settings.Strict}, 0},
			{"wrong for all", strings.ReplaceAll(all, "off", "on") + strict, map[string]settings.Mode{"every gateway": settings.Off, "edge": settings.Strict}, 1},
			{"no longer for all", strict, map[string]settings.Mode{"edge": settings.Strict}, 0},
			{"for all again", all + strict, map[string]settings.Mode{"every gateway": settings.Off, "edge": settings.Strict}, 0},
		} {
			write(t, path, step.text)
			c := <-contents
			if diff := cmp.Diff(step.want, modes(c)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", step.name, diff)
			}
			if len(c.Problems) != step.problems {
				t.Errorf("%s: problems %v, want %d", step.name, c.Problems, step.problems)
			}
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		c := <-contents
		if diff := cmp.Diff(map[string]settings.Mode{"every gateway": settings.Off, "edge": settings.Strict}, modes(c)); diff != "" {
			t.Errorf("removed, want the last valid content (-want +got):\n%s", diff)
		}
		want := []problem.Problem{{Where: path, At: problem.Position{File: path}, What: "cannot be read: no such file or directory; put it back; the last valid content stays in use"}}
		if diff := cmp.Diff(want, c.Problems); diff != "" {
			t.Errorf("removed (-want +got):\n%s", diff)
		}
	})
}

func TestEverySettingCanBeWrittenInHCL(t *testing.T) {
	path := filepath.Join(t.TempDir(), "usher.hcl")
	write(t, path, `
usher {
  proxy_protocol {
    mode                = "strict"
    versions            = ["v2"]
    trusted_cidrs       = ["10.0.16.0/20", "2001:db8::/32"]
    tlvs                = [{ type = "aws_vpce_id", name = "vpce", header = "x-vpce" }, { type = 0xE4, name = "tenant" }]
    upstream            = "v2"
    server_speaks_first = "no"
  }
  client_address {
    xff             = "append"
    trusted_hops    = 2
    forwarded_proto = { https_ports = [443] }
  }
  listeners {
    "8080" { proxy_protocol { mode = "off" tlvs = [{ type = "alpn" }] } }
    "9000" { client_address { forwarded_proto { https_ports = [443, 8443] } } }
  }
}`)
	f, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	port := func(ports ...uint32) settings.ForwardedProto {
		return settings.ForwardedProto{Type: settings.ForwardedProtoPorts, HTTPSPorts: ports}
	}
	want := settings.Settings{
		Listener: settings.Listener{
			ProxyProtocol: settings.ProxyProtocol{
				Mode: settings.Strict, Versions: []settings.Version{settings.V2},
				TrustedCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.16.0/20"), netip.MustParsePrefix("2001:db8::/32")},
				TLVs:         []settings.TLV{{Type: 0xEA, Name: "vpce", Header: "x-vpce"}, {Type: 0xE4, Name: "tenant"}},
				Upstream:     settings.UpstreamV2, ServerSpeaksFirst: settings.No,
			},
			ClientAddress: settings.ClientAddress{XFF: settings.XFFAppend, TrustedHops: 2, ForwardedProto: port(443)},
		},
		Listeners: map[int]settings.Listener{
			8080: {ProxyProtocol: settings.ProxyProtocol{Mode: settings.Off, TLVs: []settings.TLV{{Type: 1, Name: "alpn"}}}},
			9000: {ClientAddress: settings.ClientAddress{ForwardedProto: port(443, 8443)}},
		},
	}
	if diff := cmp.Diff(want, f.Content().All.Settings, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAFileThatIsWrittenInPlaceIsReadWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, f := openStrict(t)
		contents := run(t, f)
		permissive := strings.ReplaceAll(strict, "strict", "permissive")
		for i := range time.Duration(20) { // as slow writers do, while time passes in the bubble
			inPlace(t, path, i*filewatch.Interval/20, strict)
			time.Sleep(i * filewatch.Interval / 20)
			inPlace(t, path, i*filewatch.Interval/20, permissive)
		}
		c := <-contents
		for modes(c)["edge"] != settings.Permissive {
			if modes(c)["edge"] != settings.Strict || len(c.Problems) > 0 {
				t.Fatalf("a file that is being written was read as %+v", c)
			}
			c = <-contents
		}
	})
}

func TestAFileThatStaysEmptyKeepsItsSettings(t *testing.T) {
	for _, text := range []string{"", "\n"} {
		synctest.Test(t, func(t *testing.T) {
			path, f := openStrict(t)
			contents := run(t, f)
			inPlace(t, path, 0, text)
			c := <-contents
			if modes(c)["edge"] != settings.Strict || len(c.Problems) != 1 || !strings.Contains(c.Problems[0].What, "the file is empty; put its content back") {
				t.Errorf("an empty file was read as %+v, want the last settings and a problem", c)
			}
			inPlace(t, path, 0, "# nothing\n")
			if c := <-contents; len(c.Gateways) != 0 || len(c.Problems) != 0 {
				t.Errorf("a file with a comment was read as %+v, want no settings", c)
			}
		})
	}
}

// inPlace empties the file, and then writes the text in two pieces, with a pause before each.
func inPlace(t *testing.T, path string, pause time.Duration, text ...string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, text := range text {
		for _, piece := range []string{text[:len(text)/2], text[len(text)/2:]} {
			time.Sleep(pause)
			if _, err := file.WriteString(piece); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestReloadReadsTheFileAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, f := openStrict(t)
		contents := run(t, f)
		synctest.Wait()
		start := time.Now()
		write(t, path, strings.ReplaceAll(strict, "strict", "permissive"))
		f.Reload()
		if diff := cmp.Diff(map[string]settings.Mode{"edge": settings.Permissive}, modes(<-contents)); diff != "" {
			t.Errorf("after Reload (-want +got):\n%s", diff)
		}
		if took := time.Since(start); took > filewatch.Settle {
			t.Errorf("a change is read %v after Reload, want at once", took)
		}
	})
}

func TestSettingsAreRecognized(t *testing.T) {
	for text, want := range map[string]bool{
		"usher {}": true, `gateway "edge" {}`: true, `{"usher": 1}`: true, "usher:\n  a: b": true, "gateway \"edge\" {\n  ushr {}\n}": true,
		"": false, "{": false, "usher {": false, `kind = "proxy-defaults"`: false, "kind: Service\n---\nusher: {}": false, "[]": false,
	} {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, text)
		if got := IsSettings(path); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	if IsSettings(filepath.Join(t.TempDir(), "none")) {
		t.Error("a file that does not exist has settings")
	}
}
