package accesslog

import (
	"fmt"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// redactedText stands for what is not logged.
const redactedText = "[redacted]"

// addressHeaders are the request headers with which addresses of clients are
// told. They cannot be truncated.
var addressHeaders = []string{
	"x-forwarded-for", "x-envoy-external-address", "forwarded", "x-real-ip", "true-client-ip", "cf-connecting-ip", "x-client-ip",
}

// canRedact says why nothing can be left out of what an operator's own text
// shows.
func (k Params) canRedact(text string) error {
	if !k.Settings.Redacts() {
		return nil
	}
	var problem error
	replaceOperators(text, func(o operator) string {
		if problem == nil && (o.name == "CEL" || o.name == "COALESCE") {
			problem = fmt.Errorf("%s: nothing can be redacted in what this operator shows; leave it out, or redact nothing", o)
		}
		return ""
	})
	return problem
}

// redacted gives the format of an entry without what the policy keeps out.
func (k Params) redacted(e entry) entryFormat {
	if !k.Settings.Redacts() {
		return e.format
	}
	return e.format.each(func(text string) string {
		return replaceOperators(text, func(o operator) string { return k.redact(o, e) })
	})
}

func (k Params) redact(o operator, e entry) string {
	query := k.Settings.RedactQuery == settings.Yes
	switch o.name {
	case "REQ", "REQUEST_HEADER", "RESP", "RESPONSE_HEADER", "TRAILER", "RESPONSE_TRAILER", "REQ_WITHOUT_QUERY":
		return k.redactHeader(o)
	case "PATH":
		if query {
			return "%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)%"
		}
	case "QUERY_PARAM", "QUERY_PARAMS":
		if query {
			return redactedText
		}
	}
	if k.Settings.ClientAddress == settings.ClientTruncated {
		return k.truncated(o, e)
	}
	return o.String()
}

// redactHeader gives what is logged of a header, or of another one where that is
// not there.
func (k Params) redactHeader(o operator) string {
	main, other, _ := strings.Cut(o.params, "?")
	if k.secret(main) {
		return redactedText
	}
	if k.secret(other) {
		other = ""
		o.params = main
	}
	if strings.EqualFold(main, "cookie") && len(k.Settings.RedactCookies) > 0 {
		return envoy.CEL(cookiesWithout(k.Settings.RedactCookies))
	}
	hasQuery := func(name string) bool {
		return slices.Contains([]string{":path", "x-envoy-original-path", "referer"}, strings.ToLower(name))
	}
	if k.Settings.RedactQuery == settings.Yes && (hasQuery(main) || hasQuery(other)) {
		o.name = "REQ_WITHOUT_QUERY"
	}
	return o.String()
}

// secret says whether nothing of a header is logged.
func (k Params) secret(header string) bool {
	header = strings.ToLower(header)
	return slices.Contains(k.Settings.RedactHeaders, header) ||
		k.Settings.ClientAddress == settings.ClientTruncated && slices.Contains(addressHeaders, header) ||
		len(k.Settings.RedactCookies) > 0 && header == "set-cookie"
}

// cookiesWithout is the request's cookies, or nothing of them where one of those
// with the names may be among them: Envoy's expressions cannot cut them out.
func cookiesWithout(names []string) string {
	found := make([]string, len(names))
	for i, name := range names {
		found[i] = fmt.Sprintf("request.headers['cookie'].contains('%s=')", name)
	}
	return fmt.Sprintf("%s ? '%s' : request.headers['cookie']", strings.Join(found, " || "), redactedText)
}

// truncated gives the network of the client's address in place of the address.
func (k Params) truncated(o operator, e entry) string {
	switch o.name {
	case "DOWNSTREAM_REMOTE_ADDRESS", "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":
		return envoy.CEL(network("source.address"))
	case "DOWNSTREAM_DIRECT_REMOTE_ADDRESS", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT":
		return k.truncatedPeer(o, e)
	}
	return o.String()
}

// truncatedPeer gives whoever connected: a balancer as it is, and anybody who may
// be a client, too, as its network, or not at all: expressions do not know it.
func (k Params) truncatedPeer(o operator, e entry) string {
	balancer := k.Strict || k.HasUntrusted && !e.unbelieved
	switch {
	case balancer && e.format.reason == "":
		return o.String()
	case k.Envoy.AddressMasks:
		return "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT(24)%"
	}
	return "-"
}

// network is the network of an address with a port: /24, or /48 of IPv6, where
// one run of zeros is written as "::".
func network(address string) string {
	extract := func(pattern, rewrite string) string {
		return fmt.Sprintf(`re.extract(%s, r'%s', r'%s')`, address, pattern, rewrite)
	}
	v4 := extract(`^(\d+\.\d+\.\d+)\.`, `\1.0/24`)
	whole := `^\[((?:[0-9a-f]+:){2}[0-9a-f]+):`
	v6 := fmt.Sprintf(`%s.matches(r'%s') ? %s : %s`, address, whole, extract(whole, `\1::/48`), extract(`^\[(:|(?:[0-9a-f]+:){1,2}):`, `\1:/48`))
	return fmt.Sprintf(`%s.startsWith('[') ? (%s) : %s`, address, v6, v4)
}
