//go:build e2e

package e2e

import (
	"hash/crc32"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The ends of the connection that PROXY headers speak of. The addresses are
// from documentation ranges (RFC 5737, RFC 3849): no host of a lab has them.
var (
	headerClient  = netip.MustParseAddrPort("192.0.2.7:40000")
	headerClient6 = netip.MustParseAddrPort("[2001:db8::7]:40000")
	headerTarget  = netip.MustParseAddrPort("198.51.100.80:443")
	headerTarget6 = netip.MustParseAddrPort("[2001:db8::80]:443")
)

// preface is what comes first on a connection, before the client's own bytes:
// a PROXY header as balancers write it, or as somebody writes it who wants to
// break in or broke it by accident.
type preface struct {
	name   string
	text   string
	client netip.AddrPort // the client that it names; zero for none
	second string         // the part of the text behind the first header
	end    bool           // nothing comes behind it: the connection is half closed
	slowly bool           // byte by byte
}

// prefaces are all kinds; the matrix has a row for each.
// Formats: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt
var prefaces = func() []preface {
	v1 := "PROXY TCP4 192.0.2.7 198.51.100.80 40000 443\r\n"
	v2 := tlvText("")
	local := v2Text(v2Local, v2Unspec, "")
	return []preface{
		{name: "nothing"},
		{name: "v1, IPv4", text: v1, client: headerClient},
		{name: "v1, IPv6", text: "PROXY TCP6 2001:db8::7 2001:db8::80 40000 443\r\n", client: headerClient6},
		{name: "v1, UNKNOWN", text: "PROXY UNKNOWN\r\n"},
		{name: "v1, UNKNOWN with addresses", text: "PROXY UNKNOWN 192.0.2.7 198.51.100.80 40000 443\r\n", client: headerClient},
		{name: "v1, byte by byte", text: v1, client: headerClient, slowly: true},
		{name: "v2, IPv4", text: v2, client: headerClient},
		{name: "v2, IPv6", text: v2Text(v2Proxy, v2TCP6, v2Addresses(headerClient6, headerTarget6)), client: headerClient6},
		{name: "v2, UDP", text: v2Text(v2Proxy, v2UDP4, v2Addresses(headerClient, headerTarget)), client: headerClient},
		{name: "v2, LOCAL", text: local},
		{name: "v2, LOCAL with addresses", text: v2Text(v2Local, v2TCP4, v2Addresses(headerClient, headerTarget)), client: headerClient},
		{name: "v2, LOCAL with TLVs", text: v2Text(v2Local, v2Unspec, strings.Repeat(tlv(tlvNoop, "\x00\x00\x00\x00"), 12))},
		{name: "v2, UNSPEC", text: v2Text(v2Proxy, v2Unspec, "")},
		{name: "v2, unix sockets", text: v2Text(v2Proxy, v2Unix, strings.Repeat("/socket\x00", 27))},
		{name: "v2, TLVs of AWS", text: awsText("vpce-08d2bf15fac5001c9"), client: headerClient},
		{name: "v2, TLVs, wrong checksum", text: tlvText(tlv(tlvCRC32C, "\xde\xad\xbe\xef")), client: headerClient},
		{name: "v2, 60 kB of TLVs", text: tlvText(strings.Repeat(tlv(tlvNoop, strings.Repeat("\x00", 1021)), 60)), client: headerClient},
		{name: "v2, TLV beyond the end", text: tlvText(tlvAWS + "\xff\xffvpce"), client: headerClient},
		{name: "v2, byte by byte", text: v2, client: headerClient, slowly: true},
		{name: "v1, then v2", text: v1 + v2, client: headerClient, second: v2},
		{name: "v2, then v1", text: v2 + v1, client: headerClient, second: v1},
		{name: "v2, LOCAL, then v2", text: local + v2, client: headerClient, second: v2},
		{name: "v1, address that is none", text: "PROXY TCP4 192.0.2.700 198.51.100.80 40000 443\r\n"},
		{name: "v1, port that is none", text: "PROXY TCP4 192.0.2.7 198.51.100.80 70000 443\r\n"},
		{name: "v1, line of 200 bytes", text: "PROXY UNKNOWN " + strings.Repeat("x", 184) + "\r\n"},
		{name: "v1, no end of the line", text: "PROXY TCP4 192.0.2.7", end: true},
		{name: "v2, version 3", text: v2Signature + "\x31" + v2TCP4 + "\x00\x0c" + v2Addresses(headerClient, headerTarget)},
		{name: "v2, command 2", text: v2Text("\x22", v2TCP4, v2Addresses(headerClient, headerTarget))},
		{name: "v2, family 4", text: v2Text(v2Proxy, "\x41", v2Addresses(headerClient, headerTarget))},
		{name: "v2, too short for IPv4", text: v2Text(v2Proxy, v2TCP4, "\xc0\x00\x02\x07")},
		{name: "v2, cut off", text: v2[:20], end: true},
		{name: "garbage", text: "\xde\xad\xbe\xef\x00\xff" + strings.Repeat("not a header ", 3) + "\r\n\r\n"},
	}
}()

// WriteTo writes the preface, and closes this half of the connection where
// nothing is to come behind it.
func (p preface) WriteTo(w io.Writer) (int64, error) {
	step := len(p.text)
	if p.slowly {
		step = 1
	}
	var written int64
	for piece := range slices.Chunk([]byte(p.text), max(step, 1)) {
		n, err := w.Write(piece)
		written += int64(n)
		if err != nil {
			return written, err
		}
		if p.slowly {
			time.Sleep(time.Millisecond) // the slowness is what is tried
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

	v2Local, v2Proxy = "\x20", "\x21" // the version, and the command

	v2Unspec, v2TCP4, v2UDP4, v2TCP6, v2Unix = "\x00", "\x11", "\x12", "\x21", "\x31"
)

func v2Text(command, family, rest string) string {
	return v2Signature + command + family + twoBytes(len(rest)) + rest
}

func v2Addresses(from, to netip.AddrPort) string {
	return string(slices.Concat(from.Addr().AsSlice(), to.Addr().AsSlice())) + twoBytes(int(from.Port())) + twoBytes(int(to.Port()))
}

// twoBytes is a number in network byte order.
func twoBytes(n int) string { return string([]byte{byte(n >> 8), byte(n)}) }

// Types of TLVs. Those of AWS and Azure have subtypes: 0x01 is the id of a VPC
// endpoint, and of a private link
// (https://docs.aws.amazon.com/elasticloadbalancing/latest/network/edit-target-group-attributes.html,
// https://learn.microsoft.com/en-us/azure/private-link/private-link-service-overview).
const (
	tlvAuthority = "\x02"
	tlvCRC32C    = "\x03"
	tlvNoop      = "\x04"
	tlvGCP       = "\xe0"
	tlvAWS       = "\xea"
	tlvAzure     = "\xee"
)

func tlv(kind, value string) string {
	return kind + twoBytes(len(value)) + value
}

// tlvText is a header for headerClient, with TLVs.
func tlvText(tlvs string) string {
	return v2Text(v2Proxy, v2TCP4, v2Addresses(headerClient, headerTarget)+tlvs)
}

// awsText is a header as AWS's network load balancers write it for a client
// behind a VPC endpoint: a checksum, the endpoint's id, padding.
func awsText(endpoint string) string {
	with := func(checksum uint32) string {
		return tlvText(tlv(tlvCRC32C, twoBytes(int(checksum>>16))+twoBytes(int(checksum))) +
			tlv(tlvAWS, "\x01"+endpoint) + tlv(tlvNoop, strings.Repeat("\x00", 36)))
	}
	return with(crc32.Checksum([]byte(with(0)), crc32.MakeTable(crc32.Castagnoli)))
}
