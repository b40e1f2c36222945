package envoy

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
)

// DirectAddressState is the filter state with the address and port that Envoy is connected with, whatever a PROXY
// header says.
const DirectAddressState = "usher.peer"

// TLVState is the filter state with the text of the TLV of this name.
func TLVState(name string) string { return "usher.tlv." + name }

// TLVOperator is the operator that formats show a TLV with.
func TLVOperator(name string) string { return "%FILTER_STATE(" + TLVState(name) + ":PLAIN)%" }

// CEL is the operator of an expression
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/advanced/attributes).
func CEL(expression string) string { return "%CEL(" + expression + ")%" }

// StateValue sets the filter state key to the text of a format. An empty text sets nothing.
func StateValue(key, factory, format string) *statev3.FilterStateValue {
	return &statev3.FilterStateValue{
		Key:         &statev3.FilterStateValue_ObjectKey{ObjectKey: key},
		FactoryKey:  factory,
		SkipIfEmpty: true,
		Value: &statev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: Inline(format)},
		}},
	}
}

// StoreDirectAddress sets DirectAddressState.
func StoreDirectAddress() *statev3.FilterStateValue {
	return StateValue(DirectAddressState, "envoy.string", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%")
}
