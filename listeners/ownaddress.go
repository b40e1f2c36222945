package listeners

import (
	"regexp"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// ownAddresses gives a log format that never shows what a PROXY header has said:
// whatever the format asks for, it gets the connection's own addresses, and
// nothing of what has no such counterpart.
func ownAddresses(format *corev3.SubstitutionFormatString, d dialect) *corev3.SubstitutionFormatString {
	own := proto.CloneOf(format)
	switch f := own.Format.(type) {
	case *corev3.SubstitutionFormatString_TextFormatSource:
		f.TextFormatSource.Specifier = &corev3.DataSource_InlineString{InlineString: ownAddress(f.TextFormatSource.GetInlineString(), d)}
	case *corev3.SubstitutionFormatString_JsonFormat:
		ownFields(structpb.NewStructValue(f.JsonFormat), d)
	}
	return own
}

// ownFields changes the strings of a JSON format.
func ownFields(v *structpb.Value, d dialect) {
	switch kind := v.Kind.(type) {
	case *structpb.Value_StringValue:
		kind.StringValue = ownAddress(kind.StringValue, d)
	case *structpb.Value_StructValue:
		for _, field := range kind.StructValue.Fields {
			ownFields(field, d)
		}
	case *structpb.Value_ListValue:
		for _, item := range kind.ListValue.Values {
			ownFields(item, d)
		}
	}
}

// The operators that show what a PROXY header says
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/advanced/substitution_formatter):
// those of the addresses in all their spellings, also as names inside another
// operator (COALESCE), and those that lead to the filter's metadata or to
// attributes of the connection.
var (
	claimedRemote = regexp.MustCompile(`DOWNSTREAM_REMOTE_(ADDRESS|PORT)`)
	claimedLocal  = regexp.MustCompile(`DOWNSTREAM_LOCAL_(ADDRESS|PORT)`)
	localOperator = regexp.MustCompile(`%[^%]*DOWNSTREAM_LOCAL_(ADDRESS|PORT)[^%]*%`)
	otherClaims   = regexp.MustCompile(`%CEL\([^%]*\b(source|destination)\b[^%]*\)(:[0-9]+)?%|%[A-Z_]+\([^%]*proxy_protocol[^%]*\)(:[0-9]+)?%`)
	// An expression may have a percent sign of its own.
	hiddenClaim = regexp.MustCompile(`%[A-Z_]+\(([^)]|\)[^%:])*(\b(source|destination)\.|proxy_protocol)`)
)

// ownAddress changes a text with operators.
func ownAddress(text string, d dialect) string {
	const nothing = "-"
	text = claimedRemote.ReplaceAllString(text, "DOWNSTREAM_DIRECT_REMOTE_$1")
	if d.directLocal {
		text = claimedLocal.ReplaceAllString(text, "DOWNSTREAM_DIRECT_LOCAL_$1")
	} else {
		text = localOperator.ReplaceAllString(text, nothing)
	}
	text = otherClaims.ReplaceAllString(text, nothing)
	if hiddenClaim.MatchString(text) {
		return nothing + "\n"
	}
	return text
}
