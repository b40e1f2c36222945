package probe

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestText shows the whole output for the lab's broken gateway.
func TestText(t *testing.T) {
	t.Parallel()
	codec := Answer{Reaction: HTTP, Status: 400, Server: "envoy"}
	answers := []Answer{{Sent: plain, Reaction: HTTP, Status: 200, Server: "envoy", Service: true}}
	for _, sent := range []string{v1, v2, local, tlvs, paused, split, broken} {
		codec.Sent = sent
		answers = append(answers, codec)
	}
	answers[len(answers)-2].Step = firstSegment
	o := Options{Target: "198.51.100.20:8080", Version: "v1.2.3"}
	r := Result{Address: netip.MustParseAddrPort(o.Target), Source: documentation4, Answers: answers, Conclusion: conclude(answers)}
	r.Meaning = o.meaning(r)
	var text strings.Builder
	if err := (&Report{Target: o.Target, Results: []Result{r}}).Text(&text, time.Second); err != nil {
		t.Fatal(err)
	}
	const want = `198.51.100.20:8080 does not look for PROXY headers: its mode is off.
It is an Envoy.

SENT                                 WHAT CAME BACK
no PROXY header                      200 of the service, through Envoy
PROXY v1                             400 of Envoy, which cannot read the request
PROXY v2                             400 of Envoy, which cannot read the request
PROXY v2, LOCAL                      400 of Envoy, which cannot read the request
PROXY v2 with TLVs                   400 of Envoy, which cannot read the request
PROXY v1, then a pause               400 of Envoy, which cannot read the request
PROXY v2 in two segments             400 of Envoy, which cannot read the
                                     request, after the first segment
PROXY v1 with no valid address       400 of Envoy, which cannot read the request

Through a load balancer that sends no PROXY headers:
  Connections are served. Logs and services see the balancer as the client.

Through one that sends PROXY headers:
  Every request is answered with 400: Envoy reads the header as a broken
  request. This is the 400 that your clients see.

What to do:
  If the load balancer sends headers, let the listener accept them. Add this to
  Usher's config file (--config), with the gateway's name in Consul in the place
  of NAME. The number is the port of the listener in the ingress-gateway entry.
  If all connections come from the balancer, change it to "strict" afterwards.
  Consul's own xDS has no such setting: if the gateway's Envoy is not connected
  to Usher yet, move it first. If this is the address of the balancer itself,
  probe the gateway instead.

gateway "NAME" {
  usher {
    listeners {
      "8080" { proxy_protocol { mode = "permissive" } }
    }
  }
}
`
	if got := text.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestTheNoteOf404SaysOfHeadersOnlyWhatIsKnown has a listener without a route.
func TestTheNoteOf404SaysOfHeadersOnlyWhatIsKnown(t *testing.T) {
	t.Parallel()
	o := Options{Target: "198.51.100.20:8080"}
	for _, tc := range []struct {
		finding Finding
		sent    string
		want    bool
	}{{Permissive, v1, true}, {Strict, v1, true}, {Off, plain, false}, {Off, v1, false}, {Permissive, plain, false}} {
		m := o.meaning(Result{Conclusion: Conclusion{Finding: tc.finding}, Answers: []Answer{{Sent: tc.sent, Reaction: HTTP, Status: 404, Server: "envoy"}}})
		text := strings.Join(m.Notes, "\n")
		if !strings.Contains(text, "404 is Envoy's answer") || strings.Contains(text, "The PROXY header was read before that.") != tc.want {
			t.Errorf("%s, answer to %s: it says %q", tc.finding, tc.sent, text)
		}
	}
}

// TestTextFitsATerminal writes each conclusion and each reaction, for a long IPv6 address.
func TestTextFitsATerminal(t *testing.T) {
	t.Parallel()
	o := Options{Target: "[2001:db8:1111:2222:3333:4444:5555:6666]:8080", Version: "v1.2.3"}
	report := Report{Target: o.Target}
	for _, c := range conclusions() {
		r := Result{Address: netip.MustParseAddrPort(o.Target), Source: documentation6, Conclusion: c}
		for _, reaction := range []Reaction{HTTP, Data, Closed, Reset, Silence, Alert, NotTLS, Refused, Unreachable, TLSFailed, Unreadable} {
			for _, status := range []int{200, 400, 404, 503} {
				r.Answers = append(r.Answers,
					Answer{Sent: broken, OverTLS: true, Handshake: true, Reaction: reaction, Status: status, Server: "envoy", Step: wholeHeader, Detail: "tls: certificate required"},
					Answer{Sent: plain, Reaction: reaction, Status: status, Service: true, Echoed: true, Detail: "network is unreachable"},
					Answer{Sent: plain, Reaction: reaction, Status: status, Server: "a-server/with-a-version-of-forty-characters", Detail: "i/o error"},
				)
			}
		}
		r.Meaning = o.meaning(r)
		report.Results = append(report.Results, r)
	}
	var text strings.Builder
	if err := report.Text(&text, time.Second); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text.String()) {
		if len([]rune(strings.TrimSuffix(line, "\n"))) > columns || strings.TrimRight(line, " \n") != strings.TrimSuffix(line, "\n") {
			t.Errorf("a line has more than %d columns, or spaces at its end: %q", columns, line)
		}
	}
}

// TestNothingOfAResponseIsPrinted has responses with secrets in headers and body.
func TestNothingOfAResponseIsPrinted(t *testing.T) {
	t.Parallel()
	const secret = "S3cret"
	for _, f := range []fakeListener{
		{mode: Permissive, serve: answer{
			server: secret + ";", status: 302, shows: true,
			header: "Set-Cookie: session=" + secret + "\r\nAuthorization: Bearer " + secret + "\r\nWWW-Authenticate: " + secret +
				"\r\nX-Consul-Token: " + secret + "\r\nLocation: /?token=" + secret + "\r\n",
		}.serve},
		{mode: Off, serve: greeterWith(secret)},
	} {
		o := options(f.start(t))
		report, err := o.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		if err := report.Text(&text, o.Timeout); err != nil {
			t.Fatal(err)
		}
		asJSON, err := json.Marshal(report)
		if err != nil {
			t.Fatal(err)
		}
		if out := text.String() + string(asJSON); strings.Contains(out, secret) {
			t.Errorf("the output has the secret:\n%s", out)
		}
	}
}
