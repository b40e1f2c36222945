package probe

import (
	"bytes"
	"net"
	"net/netip"
	"strings"

	"github.com/pires/go-proxyproto"
)

// beginning is a way to begin a connection.
type beginning struct {
	name string
	// segments are the bytes before the payload.
	segments [][]byte
	// steps are the names of the first segments. The probe waits after each of these, and does not send the rest if
	// something comes back.
	steps  []string
	silent bool // nothing is sent, and no payload follows
}

// The beginnings. plain is the first of them on each listener.
const (
	plain   = "no PROXY header"
	v1      = "PROXY v1"
	v2      = "PROXY v2"
	local   = "PROXY v2, LOCAL"
	tlvs    = "PROXY v2 with TLVs"
	split   = "PROXY v2 in two segments"
	paused  = "PROXY v1, then a pause"
	broken  = "PROXY v1 with no valid address"
	nothing = "nothing: just connected"
)

// The steps of the beginnings split and paused.
const (
	firstSegment = "first segment"
	wholeHeader  = "header"
)

// documentation addresses (RFC 5737, RFC 3849), which no real client has.
var (
	documentation4 = netip.MustParseAddr("192.0.2.117")
	documentation6 = netip.MustParseAddr("2001:db8::117")
	target4        = netip.MustParseAddr("198.51.100.117")
	target6        = netip.MustParseAddr("2001:db8:1::117")
)

// sourcePort is the client's port in the headers.
const sourcePort = 40117

// claimed returns the client that the headers name for a target.
func (o *Options) claimed(target netip.Addr) netip.Addr {
	switch {
	case o.Source.IsValid():
		return o.Source.Unmap()
	case target.Is4():
		return documentation4
	}
	return documentation6
}

// beginningsFor returns the ways to begin a connection to a target, plain first.
func (o *Options) beginningsFor(target netip.AddrPort) ([]beginning, error) {
	from, to := o.claimed(target.Addr()), target.Addr()
	if from.Is4() != to.Is4() { // a header has one family
		to = map[bool]netip.Addr{true: target4, false: target6}[from.Is4()]
	}
	addresses := func(version byte) *proxyproto.Header {
		return proxyproto.HeaderProxyFromAddrs(version,
			net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, sourcePort)), net.TCPAddrFromAddrPort(netip.AddrPortFrom(to, target.Port())))
	}
	withTLVs := addresses(2)
	err := withTLVs.SetTLVs([]proxyproto.TLV{ // as AWS pads its headers, and an id that says where it comes from
		{Type: proxyproto.PP2_TYPE_UNIQUE_ID, Value: []byte("usher-probe")},
		{Type: proxyproto.PP2_TYPE_NOOP, Value: make([]byte, 36)},
	})
	if err != nil {
		return nil, err
	}
	all := []beginning{{name: plain}}
	for _, b := range []struct {
		name   string
		header *proxyproto.Header
	}{
		{v1, addresses(1)},
		{v2, addresses(2)},
		{local, &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}},
		{tlvs, withTLVs},
	} {
		text, err := b.header.Format()
		if err != nil {
			return nil, err
		}
		all = append(all, beginning{name: b.name, segments: [][]byte{text}})
	}
	whole, one := all[2].segments[0], all[1].segments[0]
	signature := len(proxyproto.SIGV2)
	all = append(
		all,
		beginning{name: paused, segments: [][]byte{one}, steps: []string{wholeHeader}},
		beginning{name: split, segments: [][]byte{whole[:signature], whole[signature:]}, steps: []string{firstSegment, wholeHeader}},
		beginning{name: broken, segments: [][]byte{withoutAddress(one, from)}},
	)
	if o.TCP {
		all = append(all, beginning{name: nothing, silent: true})
	}
	return all, nil
}

// withoutAddress replaces the address of the client in a header of version 1 by one that is none.
func withoutAddress(header []byte, client netip.Addr) []byte {
	return bytes.Replace(header, []byte(client.String()), []byte(client.String()+strings.Repeat("9", 4)), 1)
}

// all returns the bytes of the header.
func (b *beginning) all() []byte { return bytes.Join(b.segments, nil) }
