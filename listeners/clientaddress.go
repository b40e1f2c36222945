package listeners

import (
	"fmt"
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	customheaderv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/original_ip_detection/custom_header/v3"
	xffv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/original_ip_detection/xff/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// The operators of addresses, and the headers that these are written to.
const (
	clientOperator     = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"        // as the connection has it, after a PROXY header
	downstreamOperator = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%" // of the downstream

	xffHeader   = "x-forwarded-for"
	protoHeader = "x-forwarded-proto"
)

// setClientAddress makes a connection manager take the client's address from the connection, where the PROXY filter has
// put it, and from what proxies say that are trusted. It also sets the headers in which services get the address and the
// TLVs. With mode off and no setting of client_address it does nothing, as Consul's own gateway: headers of the client are
// trusted and passed on. It returns the changes that Envoy has to make before it reads the headers.
//
// The other effects of use_remote_address are kept small:
//   - preserve_external_request_id: a client's x-request-id stays.
//   - internal_address_config: no address counts as internal. Behind an internal load balancer every client has a
//     private address, and Envoy would trust its x-envoy-* headers, which change timeouts and retries
//     (CVE-2024-45806). To Envoy an empty list means the private networks. So the list has the one address that no
//     client can have and that the PROXY filter rejects as a source.
func (l *listenerParams) setClientAddress(hcm *hcmv3.HttpConnectionManager, from downstreams, tls bool,
) ([]*mutationv3.HeaderMutation, error) {
	client := l.settings.ClientAddress
	if !l.settings.ProxyProtocol.Enabled() && !client.IsCustom() {
		return nil, nil
	}
	hcm.PreserveExternalRequestId = true
	hcm.InternalAddressConfig = &hcmv3.HttpConnectionManager_InternalAddressConfig{
		CidrRanges: []*corev3.CidrRange{{AddressPrefix: "0.0.0.0", PrefixLen: wrapperspb.UInt32(32)}},
	}
	var headers []*mutationv3.HeaderMutation
	if from.proxies {
		if err := detectAddress(hcm, client); err != nil {
			return nil, err
		}
		headers = headersOfProxies(client, tls)
	} else {
		hcm.UseRemoteAddress = wrapperspb.Bool(true)
		hcm.XffNumTrustedHops = client.TrustedHops.Uint32()
		headers = setForwardedHeaders(hcm, client, from, tls)
		if client.HasHeader() {
			headers = append(headers, removeHeader(client.Header))
		}
	}
	for _, tlv := range l.tlvs() {
		if !tlv.HasHeader() {
			continue
		}
		headers = append(headers, removeHeader(tlv.Header))
		if !from.untrusted() {
			headers = append(headers, setHeader(tlv.Header, envoy.TLVOperator(tlv.Name)))
		}
	}
	return headers, nil
}

// believes reports whether what requests say about the client is believed.
func (l *listenerParams) believes(from downstreams) bool {
	return from.proxies || !from.untrusted() && len(l.settings.ClientAddress.TrustedCIDRs) == 0
}

// detectAddress makes Envoy take the client's address from what a trusted HTTP proxy says. Envoy can do that only without
// use_remote_address
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-for).
//
// With a header, X-Forwarded-For does not count, also where the header is missing: the list then has addresses that the
// proxy did not check.
func detectAddress(hcm *hcmv3.HttpConnectionManager, client settings.ClientAddress) error {
	name, config := "envoy.http.original_ip_detection.xff", envoy.Message(&xffv3.XffConfig{
		XffTrustedCidrs: &xffv3.XffTrustedCidrs{Cidrs: ranges(client.TrustedCIDRs)},
		SkipXffAppend:   wrapperspb.Bool(client.XFF == settings.XFFKeep),
	})
	if client.HasHeader() {
		header := &customheaderv3.CustomHeaderConfig{HeaderName: client.Header}
		if client.FailClosed == settings.Yes {
			header.RejectWithStatus = &typev3.HttpStatus{Code: typev3.StatusCode_Forbidden}
		}
		name, config = "envoy.http.original_ip_detection.custom_header", header
	}
	extension, err := envoy.Extension(&corev3.TypedExtensionConfig{}, name, config)
	hcm.OriginalIpDetectionExtensions = []*corev3.TypedExtensionConfig{extension}
	return err
}

// edgeHeaders are what use_remote_address removes and detectAddress does not: headers with which one Envoy tells another
// of the same mesh about a request.
var edgeHeaders = []string{
	"x-envoy-external-address", "x-envoy-decorator-operation", "x-envoy-downstream-service-cluster",
	"x-envoy-downstream-service-node", "x-envoy-original-path", "x-envoy-original-host",
}

// headersOfProxies returns the changes of what a trusted HTTP proxy sends. Envoy appends the proxy's address to
// X-Forwarded-For only where it reads that header.
func headersOfProxies(client settings.ClientAddress, tls bool) (changes []*mutationv3.HeaderMutation) {
	for _, h := range edgeHeaders {
		changes = append(changes, removeHeader(h))
	}
	switch {
	case !client.HasHeader():
		changes = append(changes, changeHeader(xffHeader, envoy.CEL(readableXFF), corev3.HeaderValueOption_OVERWRITE_IF_EXISTS))
	case client.XFF != settings.XFFKeep:
		changes = append(changes, changeHeader(xffHeader, clientOperator, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD))
	}
	switch protoType(client, tls, true) {
	case settings.ForwardedProtoConnection:
		return append(changes, removeHeader(protoHeader))
	case settings.ForwardedProtoPorts:
		return append(changes, setHeader(protoHeader, byPort(client.ForwardedProto.HTTPSPorts)))
	case settings.ForwardedProtoTLV:
		return append(changes, setHeader(protoHeader, byTLV))
	}
	return changes
}

// mutateHeadersEarly makes changes of request headers before Envoy reads them
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers).
func mutateHeadersEarly(hcm *hcmv3.HttpConnectionManager, headers []*mutationv3.HeaderMutation) error {
	if len(headers) == 0 {
		return nil
	}
	extension, err := envoy.Extension(&corev3.TypedExtensionConfig{}, "envoy.http.early_header_mutation.header_mutation",
		&earlyv3.HeaderMutation{Mutations: headers})
	hcm.EarlyHeaderMutationExtensions = []*corev3.TypedExtensionConfig{extension}
	return err
}

// setForwardedHeaders sets what Envoy trusts of X-Forwarded-For and X-Forwarded-Proto, and returns the changes of both
// that come before Envoy reads them.
//
// Envoy appends the address of the connection to X-Forwarded-For, and trusts X-Forwarded-Proto if there is a trusted
// hop. Where the settings ask for something else, the address is written here, and Envoy takes it for that of one
// trusted hop.
func setForwardedHeaders(hcm *hcmv3.HttpConnectionManager, client settings.ClientAddress, from downstreams, tls bool,
) []*mutationv3.HeaderMutation {
	if from.untrusted() {
		trustLastXFF(hcm)
		return []*mutationv3.HeaderMutation{setHeader(xffHeader, downstreamOperator), removeHeader(protoHeader)}
	}
	overwrite, hops := client.XFF == settings.XFFOverwrite, hcm.XffNumTrustedHops
	hcm.SkipXffAppend = client.XFF == settings.XFFKeep
	var changes []*mutationv3.HeaderMutation
	switch by := protoType(client, tls, hops > 0); {
	case by == settings.ForwardedProtoConnection && hops > 0:
		return append(changes, removeHeader(protoHeader))
	case by == settings.ForwardedProtoConnection && overwrite:
		return append(changes, removeHeader(xffHeader))
	case by == settings.ForwardedProtoConnection:
		return nil
	case by == settings.ForwardedProtoPorts:
		changes = append(changes, setHeader(protoHeader, byPort(client.ForwardedProto.HTTPSPorts)))
	case by == settings.ForwardedProtoTLV:
		changes = append(changes, setHeader(protoHeader, byTLV))
	}
	if hops > 0 {
		return changes
	}
	trustLastXFF(hcm)
	if overwrite {
		return append(changes, setHeader(xffHeader, clientOperator))
	}
	return append(changes, changeHeader(xffHeader, clientOperator, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD))
}

// protoType returns what X-Forwarded-Proto depends on. A connection with TLS is https on any port. With
// client_address.trusted_cidrs, only those proxies are trusted.
func protoType(client settings.ClientAddress, tls, proxies bool) settings.ForwardedProtoType {
	onlyProxies := len(client.TrustedCIDRs) > 0
	switch by := client.ForwardedProto.Type; {
	case by == settings.ForwardedProtoDefault && proxies:
		return settings.ForwardedProtoTrust
	case by == settings.ForwardedProtoDefault,
		tls && (by == settings.ForwardedProtoPorts || by == settings.ForwardedProtoTLV),
		by == settings.ForwardedProtoTrust && onlyProxies && !proxies:
		return settings.ForwardedProtoConnection
	default:
		return by
	}
}

// readableXFF is the expression of an X-Forwarded-For that Envoy can read. Of a list of more than 20 entries it reads
// nothing, so that clients could hide behind a proxy that appends to what they send: of such a list only the last entries
// are left. And it reads no port, which some proxies write: that of the last entry is left out. Envoy bounds the size of a
// pattern, which is why there are few entries left; \C, a byte, is smaller than a character.
var readableXFF = func() string {
	value := fmt.Sprintf("request.headers['%s']", xffHeader)
	extract := func(value, pattern string) string {
		return fmt.Sprintf(`re.extract(%s, r'%s', r'\1\2')`, value, pattern)
	}
	last := fmt.Sprintf(`(%s.matches(r'(?:,\C*){20}') ? %s : %s)`, value, extract(value, `()((?:[^,]*,){0,4}[^,]*)$`), value)
	ifMatches := func(pattern string) string {
		return fmt.Sprintf("%s.matches(r'%s') ? %s : ", last, pattern, extract(last, pattern))
	}
	return ifMatches(`^(.*[ ,]|)([0-9.]+):[0-9]+ *$`) + ifMatches(`^(.*[ ,]|)\[([0-9a-fA-F:.]+)\](?::[0-9]+)? *$`) + last
}()

// byTLV is the operator that shows what the PROXY header says.
const byTLV = "%FILTER_STATE(" + protoState + ":PLAIN)%"

// byPort is the operator that shows https on the given ports. With PROXY protocol the port is that of the load
// balancer.
func byPort(ports []uint32) string {
	list := make([]string, len(ports))
	for i, p := range ports {
		list[i] = fmt.Sprint(p)
	}
	return envoy.CEL("destination.port in [" + strings.Join(list, ", ") + "] ? 'https' : 'http'")
}

// trustLastXFF makes Envoy take the last address of X-Forwarded-For for the client.
func trustLastXFF(hcm *hcmv3.HttpConnectionManager) {
	hcm.XffNumTrustedHops, hcm.SkipXffAppend = 1, true
}

func setHeader(header, value string) *mutationv3.HeaderMutation {
	return changeHeader(header, value, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
}

func changeHeader(header, value string, action corev3.HeaderValueOption_HeaderAppendAction) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: header, Value: value},
		AppendAction: action,
	}}}
}

func removeHeader(header string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: header}}
}
