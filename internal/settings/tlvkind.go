package settings

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
)

// tlvs takes the word none, or a list of objects.
var tlvs = kind[[]TLV]{
	takes: `"none" or a list of objects { type, name, header }: type is one of ` + quoted(knownTLVNames()) + ` or a number such as "0xE4"`,
	read: func(d *decoder, where string, raw any) ([]TLV, bool) {
		if single(raw) == "none" {
			return []TLV{}, true
		}
		items := elements(raw)
		out := make([]TLV, 0, len(items))
		for i, item := range items {
			at := where
			if len(items) > 1 {
				at = fmt.Sprintf("%s[%d]", where, i)
			}
			if _, ok := single(item).(map[string]any); !ok {
				return nil, false
			}
			if t, ok := d.tlv(at, item); ok {
				out = append(out, t)
			}
		}
		d.unique(where, out)
		return out, len(items) > 0
	},
}

func knownTLVNames() []string {
	out := make([]string, len(KnownTLVs))
	for i, k := range KnownTLVs {
		out[i] = k.Name
	}
	return out
}

var (
	tlvName   = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
	tlvHeader = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
)

// tlv decodes one TLV. Only type is needed where it has a name of its own.
func (d *decoder) tlv(where string, raw any) (TLV, bool) {
	before := len(d.problems)
	members := d.object(where, raw, "type", "name", "header")
	var t TLV
	typ, known := members["type"], false
	if word, ok := single(typ).(string); ok {
		i := slices.IndexFunc(KnownTLVs, func(k KnownTLV) bool { return k.Name == word })
		if known = i >= 0; known {
			t = TLV{Type: KnownTLVs[i].Type, Name: KnownTLVs[i].LogName}
		}
	}
	if n, ok := number(typ); ok && n >= 0 && n <= math.MaxUint8 {
		t.Type = uint8(n)
	} else if !known {
		d.refuse(where+".type", typ, "one of "+quoted(knownTLVNames())+`, or a number from 0 to 255, such as "0xE4"`)
	}
	if name, said := members["name"]; said || !known {
		t.Name = d.match(where+".name", name, tlvName, `a name of small letters, digits and "_", which begins with a letter`)
	}
	if header, said := members["header"]; said {
		t.Header = d.match(where+".header", header, tlvHeader, `the name of a request header in small letters, or "none"`)
		if slices.Contains(reservedHeaders, t.Header) || strings.HasPrefix(t.Header, "x-envoy-") {
			d.problem(where+".header", fmt.Sprintf("%q has a meaning of its own; use another header", t.Header))
		}
	}
	return t, len(d.problems) == before
}

// reservedHeaders cannot tell of a TLV without taking something away.
var reservedHeaders = []string{
	"host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "keep-alive", "proxy-connection",
	"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "authorization", "cookie",
}

func (d *decoder) match(where string, raw any, pattern *regexp.Regexp, takes string) string {
	s, ok := single(raw).(string)
	if !ok || !pattern.MatchString(s) {
		d.refuse(where, raw, takes)
	}
	return s
}

// unique says what is there twice.
func (d *decoder) unique(where string, all []TLV) {
	types, names, headers := map[uint8]bool{}, map[string]bool{}, map[string]bool{"": true, NoHeader: true}
	for _, t := range all {
		switch {
		case types[t.Type]:
			d.problem(where, fmt.Sprintf("type %#x is there twice; remove one", t.Type))
		case names[t.Name]:
			d.problem(where, fmt.Sprintf("name %q is there twice; use another", t.Name))
		case headers[t.Header] && t.Header != "" && t.Header != NoHeader:
			d.problem(where, fmt.Sprintf("header %q is there twice; use another", t.Header))
		}
		types[t.Type], names[t.Name], headers[t.Header] = true, true, true
	}
}
