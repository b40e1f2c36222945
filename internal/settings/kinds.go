package settings

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// words takes one of the words.
func words[S ~string](allowed ...S) kind[S] {
	return kind[S]{
		takes: "one of " + quoted(allowed),
		read: func(_ *decoder, _ string, raw any) (S, bool) {
			s, ok := single(raw).(string)
			return S(s), ok && slices.Contains(allowed, S(s))
		},
	}
}

// wordList takes a list of at least one of the words, in any order.
func wordList[S ~string](allowed ...S) kind[[]S] {
	one := words(allowed...)
	return kind[[]S]{
		takes: "a list of " + quoted(allowed),
		read: func(d *decoder, where string, raw any) ([]S, bool) {
			var out []S
			for _, item := range elements(raw) {
				s, ok := one.read(d, where, item)
				if !ok {
					d.refuse(where, item, one.takes)
					continue
				}
				out = append(out, s)
			}
			slices.Sort(out)
			return slices.Compact(out), len(elements(raw)) > 0
		},
	}
}

// prefixes takes the word any, or a list of networks and addresses.
var prefixes = kind[[]netip.Prefix]{
	takes: `"any" or a list of networks such as "10.0.0.0/8", "192.0.2.7" and "2001:db8::/32"`,
	read: func(d *decoder, where string, raw any) ([]netip.Prefix, bool) {
		if single(raw) == "any" {
			return AnyNetwork, true
		}
		var out []netip.Prefix
		for _, item := range elements(raw) {
			s, _ := single(item).(string)
			p, ok := prefixOf(s)
			switch {
			case !ok:
				d.refuse(where, item, `"any", alone, or networks and addresses such as "10.0.0.0/8", "192.0.2.7" and "2001:db8::/32"`)
			case p != p.Masked():
				d.problem(where, fmt.Sprintf("%q is an address in the network %q; use the network, or the address alone for one peer", s, p.Masked()))
			default:
				out = append(out, p)
			}
		}
		slices.SortFunc(out, comparePrefixes)
		return slices.Compact(out), len(elements(raw)) > 0
	},
}

// prefixOf reads a network or an address. An IPv4 network that is mapped into
// IPv6 is the IPv4 network: Envoy has the peers of a socket for both that way.
func prefixOf(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, false
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), true
	}
	const mapped = 128 - 32
	if p.Addr().Is4In6() {
		if p.Bits() < mapped {
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
	}
	return p, true
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// hops takes the word none, or a small number.
var hops = kind[HopCount]{
	takes: `"none" or a number from 1 to 32`,
	read: func(_ *decoder, _ string, raw any) (HopCount, bool) {
		if single(raw) == "none" {
			return NoHops, true
		}
		n, ok := number(raw)
		return HopCount(n), ok && n >= 1 && n <= 32
	},
}

// forwardedProto takes a word, or an object with ports.
var forwardedProto = kind[ForwardedProto]{
	takes: `one of "default", "connection", "trust", or an object { https_ports = [443] }`,
	read: func(d *decoder, where string, raw any) (ForwardedProto, bool) {
		switch v := single(raw).(type) {
		case string:
			by := ForwardedProtoType(v)
			return ForwardedProto{Type: by}, slices.Contains([]ForwardedProtoType{ForwardedProtoDefault, ForwardedProtoConnection, ForwardedProtoTrust}, by)
		case map[string]any:
			members := d.object(where, v, "https_ports")
			out := ForwardedProto{Type: ForwardedProtoPorts}
			for _, item := range elements(members["https_ports"]) {
				n, ok := number(item)
				if !ok || n < 1 || n > math.MaxUint16 {
					d.refuse(where+".https_ports", item, "port numbers from 1 to 65535")
					continue
				}
				out.HTTPSPorts = append(out.HTTPSPorts, uint32(n))
			}
			if len(elements(members["https_ports"])) == 0 {
				d.problem(where+".https_ports", "there is no port; use a list of port numbers, such as [443]")
			}
			slices.Sort(out.HTTPSPorts)
			out.HTTPSPorts = slices.Compact(out.HTTPSPorts)
			return out, true
		}
		return ForwardedProto{}, false
	},
}

// elements gives what a list holds. Consul's HCL makes of a list of one its
// element, so anything else is a list of itself; nil is an empty one.
func elements(raw any) []any {
	switch v := raw.(type) {
	case nil:
		return nil
	case []any:
		return v
	case []map[string]any:
		out := make([]any, len(v))
		for i, m := range v {
			out[i] = m
		}
		return out
	}
	return []any{raw}
}

// number gives a whole number, which decoders of HCL and JSON give in several
// types, and which may be written as a string, in decimal or as 0xEA.
func number(raw any) (int, bool) {
	switch v := single(raw).(type) {
	case int:
		return v, true
	case int64:
		return int(v), v == int64(int(v))
	case float64:
		return int(v), v == math.Trunc(v) && math.Abs(v) <= math.MaxInt32
	case json.Number:
		return number(v.String())
	case string:
		base := 10
		digits, hex := strings.CutPrefix(strings.ToLower(v), "0x")
		if hex {
			base = 16
		}
		n, err := strconv.ParseUint(digits, base, 31)
		return int(n), err == nil
	}
	return 0, false
}
