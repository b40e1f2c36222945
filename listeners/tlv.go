package listeners

import (
	"fmt"
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	proxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	networkstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// The PROXY filter stores a TLV in the connection's metadata, which the log of an HTTP connection manager cannot
// read. A network filter decodes it from there into filter state, which logs and headers can read. Only clean text
// gets there, so no TLV can break a log line or a request.

// tlvRules makes the PROXY filter store the TLVs. A number is stored in base64, because Envoy makes text of the
// metadata. Envoy has one rule for each type.
func tlvRules(l listenerParams) []*proxyv3.ProxyProtocol_Rule {
	var rules []*proxyv3.ProxyProtocol_Rule
	tlvs := l.tlvs()
	if l.readsProto() {
		tlvs = append(slices.Clone(tlvs), settings.TLV{Type: settings.SSLType})
	}
	hasType := map[uint8]bool{}
	for _, tlv := range tlvs {
		if hasType[tlv.Type] || !canRead(l.input.capabilities, tlv) {
			continue
		}
		hasType[tlv.Type] = true
		stored := &proxyv3.ProxyProtocol_KeyValuePair{Key: storedKey(tlv)}
		if isNumber(tlv) {
			stored.ValueStringEncoding = proxyv3.ProxyProtocol_KeyValuePair_BASE64
		}
		rules = append(rules, &proxyv3.ProxyProtocol_Rule{TlvType: uint32(tlv.Type), OnTlvPresent: stored})
	}
	return rules
}

// storedKey is the key of a TLV in the metadata. Parts of a type have one key together, which is no TLV's name.
func storedKey(tlv settings.TLV) string {
	if tlv.Type == settings.SSLType {
		return "usher.ssl"
	}
	return tlv.Name
}

// isNumber reports whether the value of a TLV is a number in bytes, and not text.
func isNumber(tlv settings.TLV) bool {
	return tlv.Encoding() == settings.TLVAzureLink || tlv.Encoding() == settings.TLVGCPLink
}

// protoState is the filter state that says https or http, of connections whose X-Forwarded-Proto is in the PROXY header.
const protoState = "usher.forwarded_proto"

// readsProto reports whether the PROXY header decides about X-Forwarded-Proto.
func (l *listenerParams) readsProto() bool {
	return l.port.http() && l.settings.ProxyProtocol.Enabled() &&
		l.settings.ClientAddress.ForwardedProto.Type == settings.ForwardedProtoTLV
}

// tlvFilters returns the network filters that decode the TLVs of a chain's connections. Those of untrusted
// downstreams are not decoded.
func tlvFilters(l listenerParams, from downstreams, tls bool) ([]*listenerv3.Filter, error) {
	var values []*statev3.FilterStateValue
	for _, tlv := range l.tlvs() {
		if !from.untrusted() && canRead(l.input.capabilities, tlv) {
			values = append(values, envoy.StateValue(envoy.TLVState(tlv.Name), "envoy.string", envoy.CEL(tlvExpression(tlv))))
		}
	}
	if l.readsProto() && !from.untrusted() && !tls {
		values = append(values, envoy.StateValue(protoState, "envoy.string", envoy.CEL(protoExpression)))
	}
	return stateFilters(values)
}

func stateFilters(values []*statev3.FilterStateValue) ([]*listenerv3.Filter, error) {
	if len(values) == 0 {
		return nil, nil
	}
	filter, err := networkFilter("envoy.filters.network.set_filter_state", &networkstatev3.Config{OnNewConnection: values})
	return []*listenerv3.Filter{filter}, err
}

// tlvExpression is the expression of a TLV's decoded value. It is empty if the header has none or one of another
// form. An expression that fails would be "-".
func tlvExpression(tlv settings.TLV) string {
	value, present := storedTLV(tlv)
	switch tlv.Part {
	case settings.TLVSSLClientCN:
		return present + sslClientCN(value)
	case settings.TLVSSLClientVerified:
		return present + sslClientVerified(value)
	}
	switch tlv.Encoding() {
	case settings.TLVAzureLink:
		return present + azureLink(value)
	case settings.TLVGCPLink:
		return present + gcpLink(value)
	case settings.TLVAWSVPCE:
		return present + textMatching(value, `^\x01(vpce-[a-z0-9]+)$`)
	}
	return present + textMatching(value, `^([!-~]([ -~]*[!-~])?)$`)
}

// storedTLV returns the expressions of what is stored of a TLV, and of whether something is.
func storedTLV(tlv settings.TLV) (value, present string) {
	const metadata = "metadata.filter_metadata"
	key := storedKey(tlv)
	return fmt.Sprintf("%s['%s']['%s']", metadata, proxyProtocolName, key),
		fmt.Sprintf("'%s' in %s && '%s' in %s['%s']", proxyProtocolName, metadata, key, metadata, proxyProtocolName)
}

// textMatching extracts the first group of a pattern that the whole value matches.
func textMatching(value, pattern string) string {
	return fmt.Sprintf(` && %s.matches(r'%s') ? re.extract(%s, r'%s', r'\1') : ''`, value, pattern, value, pattern)
}

// azureLink decodes, from base64, a byte 1 and a little-endian number of 32 bits. Of the seven digits of six bits
// each, the second begins with the last two bits of the byte 1.
func azureLink(value string) string {
	d := func(i int) string { return base64Digit(value, i) }
	bytes := []string{
		fmt.Sprintf("%s %% 16u * 16u + %s / 4u", d(1), d(2)),
		fmt.Sprintf("%s %% 4u * 64u + %s", d(2), d(3)),
		fmt.Sprintf("%s * 4u + %s / 16u", d(4), d(5)),
		fmt.Sprintf("%s %% 16u * 16u + %s / 4u", d(5), d(6)),
	}
	number := fmt.Sprintf("(%s) + (%s) * 256u + (%s) * 65536u + (%s) * 16777216u", bytes[0], bytes[1], bytes[2], bytes[3])
	return fmt.Sprintf(` && size(%s) == 8 && %s.matches(r'^A[Q-Za-f][A-Za-z0-9+/]+=$') ? %s : ''`, value, value, number)
}

// gcpLink decodes, from base64, a big-endian number of 64 bits: ten digits of six bits, and four bits of the
// eleventh.
func gcpLink(value string) string {
	number := base64Digit(value, 0)
	for i := 1; i < 10; i++ {
		number = fmt.Sprintf("(%s) * 64u + %s", number, base64Digit(value, i))
	}
	number = fmt.Sprintf("(%s) * 16u + %s / 4u", number, base64Digit(value, 10))
	return fmt.Sprintf(` && size(%s) == 12 && %s.matches(r'^[A-Za-z0-9+/]+=$') ? %s : ''`, value, value, number)
}

// base64Digit is the value of a digit. The language has no function for it.
func base64Digit(value string, i int) string {
	return fmt.Sprintf(`%s[re.extract(%s, r'^.{%d}(.)', r'\1')]`, base64Digits, value, i)
}

var base64Digits = func() string {
	var items []string
	for i, digit := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" {
		items = append(items, fmt.Sprintf("'%c':%du", digit, i))
	}
	return "{" + strings.Join(items, ",") + "}"
}()
