//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
)

// tlvLab has listeners of all protocols that log TLVs: those of the clouds
// and of the protocol itself, and one that the user chose.
type tlvLab struct{ *lab.TrustLab }

// loggedTLV is a TLV of the settings.
type loggedTLV struct {
	name   string // the key in the log
	header string // what the service gets; "" for none
	number bool   // which Envoy 1.36 cannot log
}

var loggedTLVs = []loggedTLV{
	{name: "aws_vpce_id", header: "X-Vpce-Id"},
	{name: "proxy_authority"},
	{name: "tenant", header: "X-Tenant"},
	{name: "azure_link_id", header: "X-Link-Id", number: true},
	{name: "gcp_psc_id", number: true},
	{name: "ssl_client_cn", header: "X-Client-Cn"},
	{name: "ssl_client_verified", header: "X-Client-Verified"},
}

const tlvSettings = `tlvs = [{ type = "aws_vpce_id", header = "x-vpce-id" }, { type = "authority" }, { type = "0xE4", name = "tenant", header = "x-tenant" }, ` +
	`{ type = "azure_link_id", header = "x-link-id" }, { type = "gcp_psc_id" }, ` +
	`{ type = "ssl_client_cn", header = "x-client-cn" }, { type = "ssl_client_verified", header = "x-client-verified" }]`

// protoSettings make the header decide about X-Forwarded-Proto.
const protoSettings = `forwarded_proto = "proxy_protocol"`

// TestTLVs has balancers send TLVs besides the client's address. They are in the
// access log by name and in request headers, from trusted addresses only, and
// without bytes that could break the log, a header or a request.
func TestTLVs(t *testing.T) {
	t.Parallel()
	var listeners []lab.TestListener
	for _, protocol := range matrixProtocols {
		listeners = append(listeners,
			lab.TestListener{Protocol: protocol, Settings: lab.ListenerSettings{Mode: "strict", Extra: tlvSettings, ClientAddress: protoSettings}},
			lab.TestListener{Protocol: protocol, Settings: lab.ListenerSettings{Mode: "permissive", TrustedCIDRs: true, Extra: tlvSettings, ClientAddress: protoSettings}})
	}
	// Here the client in the header is an HTTP proxy that is believed.
	listeners = append(listeners, lab.TestListener{Protocol: "http", Settings: lab.ListenerSettings{
		Mode: "permissive", TrustedCIDRs: true, Extra: tlvSettings, ClientAddress: protoSettings + ` trusted_cidrs = "192.0.2.0/24"`,
	}})
	l := &tlvLab{lab.StartTrustLab(t, listeners)}
	for _, g := range l.Gateways {
		t.Run("envoy "+g.Version, func(t *testing.T) {
			var stories []tlvStory
			for _, m := range l.Listeners {
				for _, from := range []lab.Downstream{l.Trusted, l.Untrusted} {
					p := lab.Probe{Gateway: g, Listener: m, From: from, Address: g.Addresses[0]}
					stories = append(stories, l.wellFormed(p)...)
					stories = append(stories, l.hostile(p)...)
					stories = append(stories, l.clientTLS(p)...)
				}
			}
			l.run(t, stories)
		})
	}
}

// tlvStory is a connection with TLVs, and what may be logged of them.
type tlvStory struct {
	lab.Probe
	tls   bool // the header says that the client uses TLS
	right func(tlv loggedTLV, got string) bool
}

// newStory is a story of a connection that begins with the text.
func (l *tlvLab) newStory(p lab.Probe, text string, right func(tlv loggedTLV, got string) bool) tlvStory {
	p.Preface = lab.Preface{Name: fmt.Sprintf("%.200q", text), Bytes: text, Client: lab.HeaderClient}
	p.Header = http.Header{"X-Vpce-Id": {"forged"}, "X-Tenant": {"forged", "twice"}, "X-Link-Id": {"forged"}, "X-Client-Cn": {"forged"}, "X-Client-Verified": {"yes"}, "X-Forwarded-Proto": {"https"}}
	if p.Listener.Settings.TrustedCIDRs && p.From.Host == l.Untrusted.Host {
		right = func(_ loggedTLV, got string) bool { return got == "" }
	}
	return tlvStory{Probe: l.NewProbe(p), right: right}
}

// wellFormed are TLVs as they should be, some of them and none.
func (l *tlvLab) wellFormed(p lab.Probe) []tlvStory {
	vpce := lab.TLV(lab.TLVAWS, "\x01vpce-08d2bf15fac5001c9")
	var stories []tlvStory
	canLog := func(tlv loggedTLV) bool { return !tlv.number || p.Gateway.Version != lab.EnvoyOld }
	for _, s := range []struct {
		first string // what the connection begins with
		want  map[string]string
	}{
		{lab.AWSHeader("vpce-08d2bf15fac5001c9"), map[string]string{"aws_vpce_id": "vpce-08d2bf15fac5001c9"}},
		{lab.HeaderWithTLVs(vpce + lab.TLV(lab.TLVAuthority, "www.example.com") + lab.TLV("\xe4", "blue")), map[string]string{
			"aws_vpce_id": "vpce-08d2bf15fac5001c9", "proxy_authority": "www.example.com", "tenant": "blue",
		}},
		{lab.HeaderWithTLVs(lab.TLV(lab.TLVAzure, "\x01\x04\x03\x02\x01") + lab.TLV(lab.TLVGCP, "\x01\x02\x03\x04\x05\x06\x07\x08")), map[string]string{
			"azure_link_id": "16909060", "gcp_psc_id": "72623859790382856",
		}},
		{lab.HeaderWithTLVs(lab.TLV(lab.TLVAzure, "\x01\xff\xff\xff\xff") + lab.TLV(lab.TLVGCP, "\xff\xff\xff\xff\xff\xff\xff\xff")), map[string]string{
			"azure_link_id": "4294967295", "gcp_psc_id": "18446744073709551615",
		}},
		{lab.HeaderWithTLVs(lab.TLV(lab.TLVAzure, "\x01\x00\x00\x00\x00") + lab.TLV(lab.TLVGCP, "\x00\x00\x00\x00\x00\x00\x00\x01")), map[string]string{
			"azure_link_id": "0", "gcp_psc_id": "1",
		}},
		{lab.HeaderWithTLVs(lab.TLV(lab.TLVAzure, "\x02\x04\x03\x02\x01") + lab.TLV(lab.TLVGCP, "\x01\x02\x03\x04\x05\x06\x07")), nil},
		{lab.HeaderWithTLVs(lab.TLV("\xe4", "green team, room 7") + lab.TLV("\xe5", "of no interest")), map[string]string{"tenant": "green team, room 7"}},
		{lab.HeaderWithTLVs(""), nil},
		{lab.V2Header(lab.V2Local, lab.V2Unspec, ""), nil},
		{lab.PrefaceNamed("v1, IPv4").Bytes, nil},
	} {
		stories = append(stories, l.newStory(p, s.first, func(tlv loggedTLV, got string) bool {
			return canLog(tlv) && got == s.want[tlv.name] || !canLog(tlv) && got == ""
		}))
	}
	return stories
}

// clientTLS are TLVs about the client's TLS: well formed, forged by a client in its certificate's name, and broken.
func (l *tlvLab) clientTLS(p lab.Probe) []tlvStory {
	version, cipher := lab.TLV(lab.SSLVersion, "TLSv1.3"), lab.TLV(lab.SSLCipher, "TLS_AES_256_GCM_SHA384")
	named := func(name string) string {
		return lab.SSLTLV(lab.SSLFlagCertificate, 0, version, lab.TLV(lab.SSLClientCN, name), cipher)
	}
	longest, of33 := strings.Repeat("x", 64), strings.Repeat("y", 33)
	var stories []tlvStory
	for _, s := range []struct {
		tlv          string
		tls          bool
		cn, verified string
	}{
		{lab.SSLTLV(lab.SSLFlagTLS, 0, version), true, "", ""},
		{lab.SSLTLV(lab.SSLFlagTLS, 0), true, "", ""},
		{lab.SSLTLV("\x00", 1), false, "", ""},
		{named("alice"), true, "alice", "yes"},
		{named("Alice O'Neil, \"web\" #5"), true, "Alice O'Neil, \"web\" #5", "yes"},
		{named(longest), true, longest, "yes"},
		{named(of33), true, of33, "yes"},
		{lab.SSLTLV("\x05", 0, lab.TLV(lab.SSLClientCN, "resumed"), version), true, "resumed", "yes"},
		{lab.SSLTLV(lab.SSLFlagCertificate, 0, version, cipher, lab.TLV(lab.SSLClientCN, "last")), true, "last", "yes"},
		{lab.SSLTLV(lab.SSLFlagCertificate, 18, version, lab.TLV(lab.SSLClientCN, "selfsigned")), true, "selfsigned", "no"},
		{lab.SSLTLV(lab.SSLFlagCertificate, 0xff, lab.TLV(lab.SSLClientCN, "a")), true, "a", "no"},
		{lab.SSLTLV(lab.SSLFlagCertificate, 0x01000000, version), true, "", "no"},
		// Flags that do not speak of a certificate.
		{lab.SSLTLV(lab.SSLFlagTLS, 0, version, lab.TLV(lab.SSLClientCN, "alice")), true, "", ""},
		{lab.SSLTLV("\xff", 0, lab.TLV(lab.SSLClientCN, "alice")), false, "", ""},
		// Names that are not shown, and no part of them.
		{named(longest + "x"), true, "", "yes"},
		{named(strings.Repeat("x", 1000)), true, "", "yes"},
		{named(""), true, "", "yes"},
		{named("admin\x00.example"), true, "", "yes"},
		{named("admin#\x00\x05hello"), true, "", "yes"},
		{named("x" + lab.TLV(lab.SSLClientCN, "admin")), true, "", "yes"},
		{named(lab.TLV(lab.SSLClientCN, "admin")), true, "", "yes"},
		{named("admin" + lab.TLV(lab.SSLCipher, "x")), true, "", "yes"},
		{named("admin\r\nX-Client-Cn: root"), true, "", "yes"},
		{named("jos\xe9"), true, "", "yes"},
		{named("josé"), true, "", "yes"},
		{named("admin "), true, "", "yes"},
		// The length 200 is 33 in Envoy's text.
		{named(of33 + "#\x00\x7f" + strings.Repeat("z", 127) + "#\x00\x20" + strings.Repeat("z", 32)), true, "", "yes"},
		{named(of33 + "#\x00" + strings.Repeat("\U0001f600", 40) + "zzz"), true, "", "yes"},
		// Wrong lengths.
		{lab.SSLTLV(lab.SSLFlagCertificate, 0, version, lab.SSLClientCN+"\x00\x04alice"), true, "", "yes"},
		{lab.SSLTLV(lab.SSLFlagCertificate, 0, version, lab.SSLClientCN+"\x00\x06alice"), true, "", "yes"},
		{lab.SSLTLV(lab.SSLFlagCertificate, 0, version, lab.SSLClientCN+"\x00"), true, "", "yes"},
		{lab.TLV(lab.TLVSSL, ""), false, "", ""},
		{lab.TLV(lab.TLVSSL, "\x03"), false, "", ""},
		{lab.TLV(lab.TLVSSL, "\x03\x00\x00\x00"), false, "", ""},
	} {
		want := map[string]string{"ssl_client_cn": s.cn, "ssl_client_verified": s.verified}
		story := l.newStory(p, lab.HeaderWithTLVs(s.tlv), func(tlv loggedTLV, got string) bool { return got == want[tlv.name] })
		story.tls = s.tls
		stories = append(stories, story)
	}
	return stories
}

// wantProto is the X-Forwarded-Proto that the service should get.
func (s tlvStory) wantProto(untrusted *lab.Host) string {
	believed := !s.Listener.Settings.TrustedCIDRs || s.From.Host != untrusted
	if s.Listener.Protocol == "https" || s.tls && believed {
		return "https"
	}
	return "http"
}

// printable is what may be logged of a TLV.
var printable = regexp.MustCompile(`^[ -~]*$`)

// hostile are TLVs that are not what they should be. Whatever is logged of them is
// printable, and on one line.
func (l *tlvLab) hostile(p lab.Probe) []tlvStory {
	var stories []tlvStory
	for _, value := range []string{
		"", "\x01", "\x02vpce-08d2bf15fac5001c9", "vpce-", "\n", "a\nb", "a\r\nX-Forwarded-For: " + lab.ForgedIP + "\r\n\r\n",
		"\n{\"path\":\"/forged\",\"downstream_remote_address\":\"" + lab.ForgedIP + ":1\"}\n", `"`, `\`, `", "path": "/forged`, "\x00", "vpce-1\x00vpce-2",
		"\xff\xfe\xfd", "vpce-\xc3\x28", "é", "\x1b[31mred", "\x7f", "%REQ(HOST)%", "${jndi:ldap}", " ", strings.Repeat("x", 4096),
		"\x01vpce-08d2bf15fac5001c9\nvpce-evil", "\x01vpce-08d2bf15fac5001c9, " + lab.ForgedIP,
	} {
		text := lab.HeaderWithTLVs(lab.TLV(lab.TLVAWS, value) + lab.TLV(lab.TLVAWS, "\x01"+value) + lab.TLV(lab.TLVAuthority, value) + lab.TLV("\xe4", value) + lab.TLV(lab.TLVAzure, value) + lab.TLV(lab.TLVGCP, value))
		stories = append(stories, l.newStory(p, text, func(_ loggedTLV, got string) bool { return printable.MatchString(got) }))
	}
	return stories
}

// run makes the connections, which have to be answered, and asks for each TLV
// whether it is right: in the log, where there is exactly one
// line of each, and at the service.
func (l *tlvLab) run(t *testing.T, stories []tlvStory) {
	t.Helper()
	probes := make([]lab.Probe, len(stories))
	for i, s := range stories {
		probes[i] = s.Probe
	}
	seen, lines := l.Observe(t, probes, lab.Always)
	if lines["/forged"] != nil {
		t.Errorf("the log has lines that no request wrote: %v", lines["/forged"])
	}
	for i, s := range stories {
		entries := lines.EntriesFor(s.Probe)
		if (seen[i].Response != "200" && seen[i].Response != "served") || len(entries) != 1 {
			t.Errorf("%v: the answer is %s, and the log has %v", s.Probe, seen[i].Response, entries)
			continue
		}
		l.wantLogged(t, s, entries[0])
	}
}

func (l *tlvLab) wantLogged(t *testing.T, s tlvStory, entry lab.LogEntry) {
	t.Helper()
	if s.Listener.Protocol != "tcp" {
		got := l.Echo.Received(t, s.Path).Header.Values("X-Forwarded-Proto")
		if want := s.wantProto(l.Untrusted.Host); len(got) != 1 || got[0] != want {
			t.Errorf("%v: the service gets X-Forwarded-Proto %q, want %s", s.Probe, got, want)
		}
	}
	for _, tlv := range loggedTLVs {
		if got := strings.TrimPrefix(entry.Text(tlv.name), "-"); !s.right(tlv, got) {
			t.Errorf("%v: the log has %s %q", s.Probe, tlv.name, got)
		}
		if tlv.header == "" || s.Listener.Protocol == "tcp" {
			continue
		}
		request := l.Echo.Received(t, s.Path)
		if values := request.Header.Values(tlv.header); len(values) > 1 || !s.right(tlv, strings.Join(values, "")) {
			t.Errorf("%v: the service gets %s %q", s.Probe, tlv.header, values)
		}
	}
}
