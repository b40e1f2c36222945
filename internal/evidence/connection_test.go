package evidence

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/settings"
)

// entry is a log entry as Envoy 1.40 writes it.
type entry struct{ direct, remote, directLocal, local, bytes, flags, chain, failure, duration string }

func (e entry) String() string {
	orElse := func(text, otherwise string) string {
		if text == "" {
			return otherwise
		}
		return text
	}
	direct, local := orElse(e.direct, "10.0.3.7:40000"), orElse(e.directLocal, "10.0.1.5:8080")
	return strings.Join([]string{
		direct, orElse(e.remote, direct), local, orElse(e.local, orElse(strings.TrimPrefix(local, absent), "10.0.1.5:8080")),
		orElse(e.bytes, "46"), orElse(e.flags, absent), orElse(e.chain, absent), orElse(e.failure, absent), orElse(e.duration, "3"),
	}, "\t")
}

// byClient is an entry of a connection with a PROXY header.
var byClient = entry{remote: "203.0.113.7:1234", local: "198.51.100.2:80", chain: "8080"}

func TestTypeOfAConnection(t *testing.T) {
	t.Parallel()
	const off, permissive, strict = settings.Off, settings.Permissive, settings.Strict
	for name, c := range map[string]struct {
		mode    settings.Mode
		trusted string
		entry   entry
		want    Type
		isCheck bool
	}{
		"off":                        {mode: off, entry: entry{}, want: WithoutHeader},
		"off, no data":               {mode: off, entry: entry{bytes: "0"}, want: Unknown},
		"off, no bytes known":        {mode: off, entry: entry{bytes: absent}, want: Unknown},
		"off, a header":              {mode: off, entry: entry{flags: "DPE", bytes: "74"}, want: Malformed},
		"off, among other flags":     {mode: off, entry: entry{flags: "DC,DPE"}, want: Malformed},
		"off, a header before TLS":   {mode: off, entry: entry{failure: "TLS_error:|268435703:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end"}, want: Malformed},
		"off, a header v1 and TLS":   {mode: off, entry: entry{failure: "TLS_error:|268435612:SSL routines:OPENSSL_internal:HTTPS_PROXY_REQUEST:TLS_error_end"}, want: Malformed},
		"off, another TLS failure":   {mode: off, entry: entry{failure: "TLS_error:|268436502:SSL routines:OPENSSL_internal:SSLV3_ALERT_CERTIFICATE_UNKNOWN"}, want: WithoutHeader},
		"permissive":                 {mode: permissive, entry: entry{chain: "8080"}, want: WithoutHeader},
		"permissive, not HTTP":       {mode: permissive, entry: entry{chain: "8080", flags: "DPE"}, want: WithoutHeader},
		"permissive, a header":       {mode: permissive, entry: byClient, want: WithHeader},
		"permissive, connect, close": {mode: permissive, entry: entry{bytes: "0"}, want: Unknown},
		"permissive, no chain":       {mode: permissive, entry: entry{}, want: Unknown},
		"permissive, LOCAL alone":    {mode: permissive, entry: entry{bytes: "0", chain: "8080"}, want: Unknown},
		"strict, a header":           {mode: strict, entry: byClient, want: WithHeader},
		"strict, a header and no SNI": {mode: strict, entry: entry{
			remote: "203.0.113.7:1234", local: "198.51.100.2:80", flags: "NR", bytes: "0",
		}, want: WithHeader},
		"strict, LOCAL":      {mode: strict, entry: entry{chain: "8080"}, want: Unknown},
		"strict, none":       {mode: strict, entry: entry{bytes: "0"}, want: Refused, isCheck: true},
		"the listener's own": {mode: strict, entry: entry{remote: "203.0.113.7:1234", chain: "8080"}, want: WithHeader},
		"the client's own":   {mode: strict, entry: entry{local: "198.51.100.2:80", chain: "8080"}, want: WithHeader},
		"an Envoy before 36": {mode: strict, entry: entry{directLocal: absent, local: "198.51.100.2:80", chain: "8080"}, want: WithHeader},
		"it, without":        {mode: permissive, entry: entry{directLocal: absent, chain: "8080"}, want: WithoutHeader},
		"it, no address":     {mode: permissive, entry: entry{directLocal: absent, local: absent, chain: "8080"}, want: WithoutHeader},
		"trusted":            {mode: strict, trusted: "10.0.3.0/24", entry: byClient, want: WithHeader},
		"untrusted":          {mode: strict, trusted: "10.0.4.0/24", entry: byClient, want: UntrustedHeader},
		"untrusted, refused": {mode: strict, trusted: "10.0.4.0/24", entry: entry{bytes: "0"}, want: Untrusted},
		"untrusted, no data": {mode: permissive, trusted: "10.0.4.0/24", entry: entry{bytes: "0"}, want: Unknown},
		"untrusted, claims": {mode: permissive, trusted: "10.0.4.0/24", entry: entry{
			remote: "203.0.113.7:1234", local: "198.51.100.2:80", bytes: "0",
		}, want: UntrustedHeader},
		"untrusted, served": {mode: permissive, trusted: "10.0.4.0/24", entry: entry{chain: "8080_untrusted"}, want: Untrusted},
		"IPv6": {mode: permissive, trusted: "fd00::/8", entry: entry{
			direct: "[fd00::7]:40000", directLocal: "[fd00::1]:8080", local: "[fd00::1]:8080", chain: "8080",
		}, want: WithoutHeader},
		"a zone": {mode: permissive, trusted: "fe80::/10", entry: entry{
			direct: "[fe80::7%eth0]:40000", directLocal: "[fe80::1%eth0]:8080", local: "[fe80::1%eth0]:8080", chain: "8080",
		}, want: WithoutHeader},
		"IPv4 in IPv6": {mode: permissive, trusted: "10.0.3.0/24", entry: entry{
			direct: "[::ffff:10.0.3.7]:40000", directLocal: "[::ffff:10.0.1.5]:8080", local: "[::ffff:10.0.1.5]:8080", chain: "8080",
		}, want: WithoutHeader},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := Listener{Port: 8080, Mode: c.mode}
			if c.trusted != "" {
				l.Trusted = []netip.Prefix{netip.MustParsePrefix(c.trusted)}
			}
			parsed, ok := parseConnection(l, c.entry.String())
			if !ok {
				t.Fatalf("%q cannot be read", c.entry)
			}
			if got, isCheck := parsed.classify(l); got != c.want || isCheck != c.isCheck {
				t.Errorf("%s, %t; want %s, %t", typeNames[got], isCheck, typeNames[c.want], c.isCheck)
			}
		})
	}
}

func TestFormatHasTheFieldsThatAreRead(t *testing.T) {
	t.Parallel()
	for _, has := range []Operators{{}, {DirectLocalAddress: true, TransportFailureReason: true}} {
		if n := strings.Count(Format(has), "\t"); n != strings.Count(entry{}.String(), "\t") {
			t.Errorf("%+v: %d tabs", has, n)
		}
	}
	for _, text := range []string{"", "a\tb", entry{}.String() + "\t-", strings.Repeat("\t", 8), "pipe\t-\t-\t-\t0\t-\t-\t-\t0"} {
		if _, ok := parseConnection(Listener{}, text); ok {
			t.Errorf("%q was read", text)
		}
	}
}
