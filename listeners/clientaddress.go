package listeners

import (
	"fmt"
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
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
// put it, and from as many entries of X-Forwarded-For as there are trusted hops. It also sets the headers in which
// services get the address and the TLVs. With mode off and no setting of client_address it does nothing, as Consul's
// own gateway: headers of the client are trusted and passed on. It returns the changes that Envoy has to make before it
// reads the headers.
//
// The other effects of use_remote_address are kept small:
//   - preserve_external_request_id: a client's x-request-id stays.
//   - internal_address_config: no address counts as internal. Behind an internal load balancer every client has a
//     private address, and Envoy would trust its x-envoy-* headers, which change timeouts and retries
//     (CVE-2024-45806). To Envoy an empty list means the private networks. So the list has the one address that no
//     client can have and that the PROXY filter rejects as a source.
func (l *listenerParams) setClientAddress(hcm *hcmv3.HttpConnectionManager, from trustClass, tls bool,
) []*mutationv3.HeaderMutation {
	client := l.settings.ClientAddress
	if !l.settings.ProxyProtocol.Enabled() && !client.IsCustom() {
		return nil
	}
	hcm.UseRemoteAddress = wrapperspb.Bool(true)
	hcm.PreserveExternalRequestId = true
	hcm.InternalAddressConfig = &hcmv3.HttpConnectionManager_InternalAddressConfig{
		CidrRanges: []*corev3.CidrRange{{AddressPrefix: "0.0.0.0", PrefixLen: wrapperspb.UInt32(32)}},
	}
	hcm.XffNumTrustedHops = client.TrustedHops.Uint32()
	headers := setForwardedHeaders(hcm, client, from, tls)
	for _, tlv := range l.tlvs() {
		if tlv.Header == "" || tlv.Header == settings.NoHeader {
			continue
		}
		headers = append(headers, removeHeader(tlv.Header))
		if from != untrustedDownstreams {
			headers = append(headers, setHeader(tlv.Header, envoy.TLVOperator(tlv.Name)))
		}
	}
	return headers
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
func setForwardedHeaders(hcm *hcmv3.HttpConnectionManager, client settings.ClientAddress, from trustClass, tls bool,
) []*mutationv3.HeaderMutation {
	if from == untrustedDownstreams {
		trustLastXFF(hcm)
		return []*mutationv3.HeaderMutation{setHeader(xffHeader, downstreamOperator), removeHeader(protoHeader)}
	}
	overwrite, hops := client.XFF == settings.XFFOverwrite, hcm.XffNumTrustedHops
	var changes []*mutationv3.HeaderMutation
	switch by := protoType(client, tls); {
	case by == settings.ForwardedProtoConnection && hops > 0:
		return append(changes, removeHeader(protoHeader))
	case by == settings.ForwardedProtoConnection && overwrite:
		return append(changes, removeHeader(xffHeader))
	case by == settings.ForwardedProtoConnection:
		return nil
	case by == settings.ForwardedProtoPorts:
		changes = append(changes, setHeader(protoHeader, byPort(client.ForwardedProto.HTTPSPorts)))
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

// protoType returns what X-Forwarded-Proto depends on. A connection with TLS is https on any port.
func protoType(client settings.ClientAddress, tls bool) settings.ForwardedProtoType {
	switch by := client.ForwardedProto.Type; {
	case by == settings.ForwardedProtoDefault && client.TrustedHops.Uint32() > 0:
		return settings.ForwardedProtoTrust
	case by == settings.ForwardedProtoDefault, by == settings.ForwardedProtoPorts && tls:
		return settings.ForwardedProtoConnection
	default:
		return by
	}
}

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
