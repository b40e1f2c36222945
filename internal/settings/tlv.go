package settings

import (
	"cmp"
	"slices"
)

// TLV is a piece of information that a balancer adds to a PROXY header of
// version 2, and that the access log, and maybe the service, is told.
type TLV struct {
	Type uint8
	// Name is the key in the access log.
	Name string
	// Header is the request header that has it; "" or NoHeader: none.
	Header string
}

// NoHeader is the word with which a TLV has no header, where Consul's merge
// would bring back that of another source.
const NoHeader = "none"

// KnownTLV is a type of TLV with a meaning that is written down somewhere.
type KnownTLV struct {
	Type     uint8
	Name     string // the word for Type
	LogName  string // in the access log, unless the operator names another
	Encoding TLVEncoding
	Meaning  string
}

// TLVEncoding says how the bytes of a TLV are to be read.
type TLVEncoding uint8

// The forms. The zero value is printable text.
const (
	TLVText      TLVEncoding = iota // printable ASCII
	TLVAWSVPCE                      // a byte 1, then the id of a VPC endpoint as text
	TLVAzureLink                    // a byte 1, then a number of 32 bits, the lowest byte first
	TLVGCPLink                      // a number of 64 bits, the highest byte first
)

// KnownTLVs are the types that have names, by type. Those below 0x20 are of the
// protocol itself, chapter 2.2 of its specification.
var KnownTLVs = []KnownTLV{
	{0x01, "alpn", "alpn", TLVText, "the protocol chosen in the client's TLS handshake with the balancer, such as h2"},
	{0x02, "authority", "proxy_authority", TLVText, "the host name that the client asked the balancer for (SNI)"},
	{0x05, "unique_id", "unique_id", TLVText, "the id that the balancer has given the connection"},
	{0xE0, "gcp_psc_id", "gcp_psc_id", TLVGCPLink, "the id of the Private Service Connect connection (Google Cloud)"},
	{0xEA, "aws_vpce_id", "aws_vpce_id", TLVAWSVPCE, "the id of the VPC endpoint (AWS PrivateLink), vpce-…"},
	{0xEE, "azure_link_id", "azure_link_id", TLVAzureLink, "the link id of the private endpoint (Azure Private Link)"},
}

// Form gives the form of the TLV's bytes.
func (t TLV) Encoding() TLVEncoding {
	i, known := slices.BinarySearchFunc(KnownTLVs, t.Type, func(k KnownTLV, typ uint8) int { return cmp.Compare(k.Type, typ) })
	if !known {
		return TLVText
	}
	return KnownTLVs[i].Encoding
}
