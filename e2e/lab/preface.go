//go:build e2e

package lab

import (
	"hash/crc32"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The source and the destination in the PROXY headers. The addresses are
// from documentation ranges (RFC 5737, RFC 3849): no host of a lab has them.
var (
	HeaderClient  = netip.MustParseAddrPort("192.0.2.7:40000")
	HeaderClient6 = netip.MustParseAddrPort("[2001:db8::7]:40000")
	headerTarget  = netip.MustParseAddrPort("198.51.100.80:443")
	HeaderTarget6 = netip.MustParseAddrPort("[2001:db8::80]:443")
)

// Preface is what comes first on a connection, before the client's own bytes:
// a PROXY header as balancers write it, or one that an attacker or an accident
// makes.
type Preface struct {
	Name         string
	Bytes        string
	Client       netip.AddrPort // the client that it names; zero for none
	SecondHeader string         // the bytes after the first header
	end          bool           // nothing comes behind it: the connection is half closed
	slowly       bool           // byte by byte
}

// Prefaces are all prefaces; the matrix has a row for each.
// Formats: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt
var Prefaces = func() []Preface {
	v1 := "PROXY TCP4 192.0.2.7 198.51.100.80 40000 443\r\n"
	v2 := HeaderWithTLVs("")
	local := V2Header(V2Local, V2Unspec, "")
	return []Preface{
		{Name: "nothing"},
		{Name: "v1, IPv4", Bytes: v1, Client: HeaderClient},
		{Name: "v1, IPv6", Bytes: "PROXY TCP6 2001:db8::7 2001:db8::80 40000 443\r\n", Client: HeaderClient6},
		{Name: "v1, UNKNOWN", Bytes: "PROXY UNKNOWN\r\n"},
		{Name: "v1, UNKNOWN with addresses", Bytes: "PROXY UNKNOWN 192.0.2.7 198.51.100.80 40000 443\r\n", Client: HeaderClient},
		{Name: "v1, byte by byte", Bytes: v1, Client: HeaderClient, slowly: true},
		{Name: "v2, IPv4", Bytes: v2, Client: HeaderClient},
		{Name: "v2, IPv6", Bytes: V2Header(V2Proxy, V2TCP6, V2Addresses(HeaderClient6, HeaderTarget6)), Client: HeaderClient6},
		{Name: "v2, UDP", Bytes: V2Header(V2Proxy, v2UDP4, V2Addresses(HeaderClient, headerTarget)), Client: HeaderClient},
		{Name: "v2, LOCAL", Bytes: local},
		{Name: "v2, LOCAL with addresses", Bytes: V2Header(V2Local, v2TCP4, V2Addresses(HeaderClient, headerTarget)), Client: HeaderClient},
		{Name: "v2, LOCAL with TLVs", Bytes: V2Header(V2Local, V2Unspec, strings.Repeat(TLV(tlvNoop, "\x00\x00\x00\x00"), 12))},
		{Name: "v2, UNSPEC", Bytes: V2Header(V2Proxy, V2Unspec, "")},
		{Name: "v2, unix sockets", Bytes: V2Header(V2Proxy, v2Unix, strings.Repeat("/socket\x00", 27))},
		{Name: "v2, TLVs of AWS", Bytes: AWSHeader("vpce-08d2bf15fac5001c9"), Client: HeaderClient},
		{Name: "v2, TLVs, wrong checksum", Bytes: HeaderWithTLVs(TLV(tlvCRC32C, "\xde\xad\xbe\xef")), Client: HeaderClient},
		{Name: "v2, 60 kB of TLVs", Bytes: HeaderWithTLVs(strings.Repeat(TLV(tlvNoop, strings.Repeat("\x00", 1021)), 60)), Client: HeaderClient},
		{Name: "v2, TLV beyond the end", Bytes: HeaderWithTLVs(TLVAWS + "\xff\xffvpce"), Client: HeaderClient},
		{Name: "v2, byte by byte", Bytes: v2, Client: HeaderClient, slowly: true},
		{Name: "v1, then v2", Bytes: v1 + v2, Client: HeaderClient, SecondHeader: v2},
		{Name: "v2, then v1", Bytes: v2 + v1, Client: HeaderClient, SecondHeader: v1},
		{Name: "v2, LOCAL, then v2", Bytes: local + v2, Client: HeaderClient, SecondHeader: v2},
		{Name: "v1, address that is none", Bytes: "PROXY TCP4 192.0.2.700 198.51.100.80 40000 443\r\n"},
		{Name: "v1, port that is none", Bytes: "PROXY TCP4 192.0.2.7 198.51.100.80 70000 443\r\n"},
		{Name: "v1, line of 200 bytes", Bytes: "PROXY UNKNOWN " + strings.Repeat("x", 184) + "\r\n"},
		{Name: "v1, no end of the line", Bytes: "PROXY TCP4 192.0.2.7", end: true},
		{Name: "v2, version 3", Bytes: v2Signature + "\x31" + v2TCP4 + "\x00\x0c" + V2Addresses(HeaderClient, headerTarget)},
		{Name: "v2, command 2", Bytes: V2Header("\x22", v2TCP4, V2Addresses(HeaderClient, headerTarget))},
		{Name: "v2, family 4", Bytes: V2Header(V2Proxy, "\x41", V2Addresses(HeaderClient, headerTarget))},
		{Name: "v2, too short for IPv4", Bytes: V2Header(V2Proxy, v2TCP4, "\xc0\x00\x02\x07")},
		{Name: "v2, cut off", Bytes: v2[:20], end: true},
		{Name: "garbage", Bytes: "\xde\xad\xbe\xef\x00\xff" + strings.Repeat("not a header ", 3) + "\r\n\r\n"},
	}
}()

// WriteTo writes the preface, and closes this half of the connection where
// nothing is to come behind it.
func (p Preface) WriteTo(w io.Writer) (int64, error) {
	step := len(p.Bytes)
	if p.slowly {
		step = 1
	}
	var written int64
	for piece := range slices.Chunk([]byte(p.Bytes), max(step, 1)) {
		n, err := w.Write(piece)
		written += int64(n)
		if err != nil {
			return written, err
		}
		if p.slowly {
			time.Sleep(time.Millisecond) // the test is about slow writes
		}
	}
	if conn, ok := w.(interface{ CloseWrite() error }); ok && p.end {
		return written, conn.CloseWrite()
	}
	return written, nil
}

// The parts of a header of version 2.
const (
	v2Signature = "\r\n\r\n\x00\r\nQUIT\n"

	V2Local = "\x20" // the version, and the command
	V2Proxy = "\x21"

	V2Unspec = "\x00" // the family of the addresses, and the transport
	V2TCP6   = "\x21"
	v2TCP4   = "\x11"
	v2UDP4   = "\x12"
	v2Unix   = "\x31"
)

// V2Header returns a header of version 2: command and family of addresses, then the
// length of the rest, then the rest.
func V2Header(command, family, rest string) string {
	return v2Signature + command + family + twoBytes(len(rest)) + rest
}

// V2Addresses returns the source and the destination as a header of version 2 has
// them.
func V2Addresses(from, to netip.AddrPort) string {
	return string(slices.Concat(from.Addr().AsSlice(), to.Addr().AsSlice())) + twoBytes(int(from.Port())) + twoBytes(int(to.Port()))
}

// twoBytes is a number in network byte order.
func twoBytes(n int) string { return string([]byte{byte(n >> 8), byte(n)}) }

// Types of TLVs. Those of AWS and Azure have subtypes: 0x01 is the id of a VPC
// endpoint, and of a private link
// (https://docs.aws.amazon.com/elasticloadbalancing/latest/network/edit-target-group-attributes.html,
// https://learn.microsoft.com/en-us/azure/private-link/private-link-service-overview).
const (
	TLVAuthority = "\x02"
	tlvCRC32C    = "\x03"
	tlvNoop      = "\x04"
	TLVSSL       = "\x20"
	TLVGCP       = "\xe0"
	TLVAWS       = "\xea"
	TLVAzure     = "\xee"
)

// TLV returns a TLV of the type.
func TLV(kind, value string) string {
	return kind + twoBytes(len(value)) + value
}

// The flags of an SSL TLV, and the types of its parts.
const (
	SSLFlagTLS         = "\x01"
	SSLFlagCertificate = "\x03" // with TLS, and in this connection

	SSLVersion  = "\x21"
	SSLClientCN = "\x22"
	SSLCipher   = "\x23"
)

// SSLTLV is a TLV about the client's TLS: its flags, the result of the verification of its certificate (0 for a good
// one), and parts, which are TLVs themselves.
func SSLTLV(flags string, verify int, parts ...string) string {
	return TLV(TLVSSL, flags+twoBytes(verify>>16)+twoBytes(verify)+strings.Join(parts, ""))
}

// HeaderWithTLVs is a header for HeaderClient, with TLVs.
func HeaderWithTLVs(tlvs string) string {
	return V2Header(V2Proxy, v2TCP4, V2Addresses(HeaderClient, headerTarget)+tlvs)
}

// AWSHeader is a header as AWS's network load balancers write it for a client
// behind a VPC endpoint: a checksum, the endpoint's id, padding.
func AWSHeader(endpoint string) string {
	with := func(checksum uint32) string {
		return HeaderWithTLVs(TLV(tlvCRC32C, twoBytes(int(checksum>>16))+twoBytes(int(checksum))) +
			TLV(TLVAWS, "\x01"+endpoint) + TLV(tlvNoop, strings.Repeat("\x00", 36)))
	}
	return with(crc32.Checksum([]byte(with(0)), crc32.MakeTable(crc32.Castagnoli)))
}

// PrefaceNamed returns the preface of that name.
func PrefaceNamed(name string) Preface {
	return Prefaces[slices.IndexFunc(Prefaces, func(p Preface) bool { return p.Name == name })]
}
