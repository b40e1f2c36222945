package settings

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// TLV is a piece of information that a load balancer adds to a PROXY header (version 2). The access log gets it, and
// the service if it has a Header.
type TLV struct {
	Type   uint8
	Name   string // the key in the access log
	Header string // the request header with the value; empty or NoHeader: none
	Part   TLVPart
}

// TLVPart is what is read of a TLV's value.
type TLVPart uint8

// The parts. Those of SSLType are read according to chapter 2.2.6 of the specification.
const (
	TLVWhole             TLVPart = iota // all of the value
	TLVSSLClientCN                      // the common name in the client's certificate
	TLVSSLClientVerified                // whether the load balancer has verified the client's certificate
)

// SSLType is the type of the TLV that describes the client's TLS connection to the load balancer.
const SSLType uint8 = 0x20

// NoHeader means that a TLV has no header. It is a word because Consul's merge would replace an empty value by that
// of another layer.
const NoHeader = "none"

// HasHeader reports whether the service gets the TLV in a header.
func (t TLV) HasHeader() bool { return isHeader(t.Header) }

// isHeader reports whether a setting names a header.
func isHeader(name string) bool { return name != "" && name != NoHeader }

// KnownTLV is a type of TLV whose meaning a specification defines.
type KnownTLV struct {
	Type     uint8
	Name     string // the word for Type
	LogName  string // the key in the access log, unless the setting gives another
	Encoding TLVEncoding
	Part     TLVPart
	Meaning  string
}

// TLVEncoding is how a TLV encodes its value.
type TLVEncoding uint8

// The encodings. The zero value is printable text.
const (
	TLVText      TLVEncoding = iota // printable ASCII
	TLVAWSVPCE                      // a byte 1, then the id of a VPC endpoint as text
	TLVAzureLink                    // a byte 1, then a 32-bit number, little endian
	TLVGCPLink                      // a 64-bit number, big endian
)

// KnownTLVs are the types that have names, sorted by type. The PROXY protocol itself defines those below 0x20
// and 0x20 itself (chapter 2.2 of its specification).
var KnownTLVs = []KnownTLV{
	{0x01, "alpn", "alpn", TLVText, TLVWhole, "the protocol that the client's TLS handshake with the load balancer chose, such as h2"},
	{0x02, "authority", "proxy_authority", TLVText, TLVWhole, "the host name that the client asked the load balancer for (SNI)"},
	{0x05, "unique_id", "unique_id", TLVText, TLVWhole, "the id that the load balancer gave the connection"},
	{
		SSLType, "ssl_client_cn", "ssl_client_cn", TLVText, TLVSSLClientCN,
		"the common name (CN) in the certificate that the client presented to the load balancer, verified or not; " +
			"up to 64 printable ASCII characters except `!`",
	},
	{
		SSLType, "ssl_client_verified", "ssl_client_verified", TLVText, TLVSSLClientVerified,
		"whether the load balancer has verified the client's certificate: `yes` or `no`, and nothing if the client presented none",
	},
	{0xE0, "gcp_psc_id", "gcp_psc_id", TLVGCPLink, TLVWhole, "the id of the Private Service Connect connection (Google Cloud)"},
	{0xEA, "aws_vpce_id", "aws_vpce_id", TLVAWSVPCE, TLVWhole, "the id of the VPC endpoint (AWS PrivateLink), vpce-…"},
	{0xEE, "azure_link_id", "azure_link_id", TLVAzureLink, TLVWhole, "the link id of the private endpoint (Azure Private Link)"},
}

// Encoding returns how the TLV encodes its value. Parts have none of their own.
func (t TLV) Encoding() TLVEncoding {
	for _, k := range KnownTLVs {
		if k.Type == t.Type && k.Part == t.Part {
			return k.Encoding
		}
	}
	return TLVText
}

// tlvType accepts the names of known types, and numbers.
var tlvType = tlvTypeFrom(0)

// tlvTypes accepts lists of them. No type that is in use is 0, which Consul would lose.
var tlvTypes = setOf(tlvTypeFrom(1), cmp.Compare, `a list of types as in tlvs, such as ["aws_vpce_id", "0xE4"]`)

func tlvTypeFrom(lowest uint8) valueType[uint8] {
	t := number(lowest, 255)
	t.other += ` such as "0xE4"`
	for _, k := range KnownTLVs {
		t = t.or(k.Name, k.Type)
	}
	return t
}

// tlvs accepts the word none, or a list of objects.
var tlvs = func() valueType[[]TLV] {
	list := listOf(
		objectOf("an object { type, name, header }", decodeTLV, "type", "name", "header"),
		"a list of objects { type, name, header }: type is "+tlvType.accepts(),
	)
	decodeList := list.read
	list.read = func(d *decoder, where string, raw any) ([]TLV, bool) {
		before := len(d.problems)
		all, ok := decodeList(d, where, raw)
		if len(d.problems) == before {
			d.checkUnique(where, all)
		}
		return all, ok
	}
	return list.or("none", []TLV{})
}()

var tlvName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// decodeTLV decodes one TLV. A name is required unless the type is a known name.
func decodeTLV(o object) TLV {
	t := TLV{Type: required(o, "type", tlvType)}
	typeName, _ := single(o.members["type"]).(string)
	known := slices.IndexFunc(KnownTLVs, func(k KnownTLV) bool { return k.Name == typeName })
	if known >= 0 {
		t.Part = KnownTLVs[known].Part
	}
	_, named := o.members["name"]
	if known >= 0 && !named {
		t.Name = KnownTLVs[known].LogName
	} else {
		t.Name = required(o, "name", text(tlvName, `a name of lower-case letters, digits and "_" that begins with a letter`))
	}
	t.Header = optional(o, "header", text(headerName, `the name of a request header in lower case, or "none"`))
	o.d.checkUnreserved(o.where+".header", t.Header)
	return t
}

// checkUnreserved reports a header that requests need for something else.
func (d *decoder) checkUnreserved(where, header string) {
	if slices.Contains(reservedHeaders, header) || strings.HasPrefix(header, "x-envoy-") {
		d.problem(where, fmt.Sprintf("the header %q already has a meaning; use another one", header))
	}
}

// reservedHeaders are headers that requests need for something else.
var reservedHeaders = []string{
	"host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "keep-alive", "proxy-connection",
	"x-forwarded-for", "x-forwarded-proto", "x-forwarded-port", "x-forwarded-host", "x-request-id", "authorization", "cookie",
}

// checkUnique reports types, names and headers that occur twice. Different parts of one type are no repetition.
func (d *decoder) checkUnique(where string, all []TLV) {
	seen := map[string]bool{}
	for _, t := range all {
		values := []string{"type " + t.typeText(), fmt.Sprintf("name %q", t.Name)}
		if t.HasHeader() {
			values = append(values, fmt.Sprintf("header %q", t.Header))
		}
		for _, value := range values {
			if seen[value] {
				d.problem(where, value+" occurs twice; remove one, or use another")
			}
			seen[value] = true
		}
	}
}

// typeText is the type in messages: the word of a part, or the number.
func (t TLV) typeText() string {
	for _, k := range KnownTLVs {
		if k.Part == t.Part && k.Part != TLVWhole {
			return fmt.Sprintf("%q", k.Name)
		}
	}
	return fmt.Sprintf("%#x", t.Type)
}
