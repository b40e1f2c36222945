package settings

import (
	"net/netip"
	"reflect"
	"strings"
)

//go:generate go run ../../tools/settings-doc ../../docs/settings.md

// Setting describes one setting of a listener, for documentation.
type Setting struct {
	Path    string // below the key usher: "proxy_protocol.mode"
	Accepts string // what may stand there
	Default string // what counts where nobody says anything
	Meaning string
}

// setting is one setting of a listener: its description, how its value is
// decoded, and how it is taken from several sources.
type setting interface {
	description() Setting
	decode(d *decoder, where string, raw any, into *Listener)
	resolve(into *Listener, said []*Listener)
}

// AnyNetwork is what the word "any" means for trusted_cidrs.
var AnyNetwork = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// schema is the table of all settings: decoding, merging, messages and
// docs/settings.md follow from it, in its order.
var schema = append([]setting{
	option[Mode]{
		path: "proxy_protocol.mode", initial: Auto, says: `"auto"`,
		field: func(p *Listener) *Mode { return &p.ProxyProtocol.Mode },
		kind:  words(Auto, Off, Permissive, Strict),
		meaning: "which connections a listener takes: with `off` no header is looked for, exactly as behind Consul's own gateway; " +
			"with `permissive` a connection is served with a header and without one; with `strict` it is closed without one. " +
			"With `auto` it is what the load balancer was told by the gateway's Service in Kubernetes ([load-balancers.md](load-balancers.md)), and `off` outside Kubernetes",
	},
	option[[]Version]{
		path: "proxy_protocol.versions", initial: []Version{V1, V2}, says: `["v1", "v2"]`,
		field: func(p *Listener) *[]Version { return &p.ProxyProtocol.Versions },
		kind:  wordList(V1, V2),
		meaning: "the versions of the protocol that count as a header. With `strict`, a header of the other one closes the connection; " +
			"with `permissive` it is data: http listeners answer 400, and on tcp listeners both have to be listed",
	},
	option[[]netip.Prefix]{
		path: "proxy_protocol.trusted_cidrs", initial: AnyNetwork, says: `"any"`,
		field: func(p *Listener) *[]netip.Prefix { return &p.ProxyProtocol.TrustedCIDRs },
		kind:  prefixes,
		meaning: "whose headers are believed: the addresses that your balancers connect from. With `strict`, a connection from anybody else is closed; " +
			"with `permissive` it is served, and its own address counts, whatever its header says",
	},
	option[[]TLV]{
		path: "proxy_protocol.tlvs", initial: []TLV{}, says: `"none"`,
		field: func(p *Listener) *[]TLV { return &p.ProxyProtocol.TLVs },
		kind:  tlvs,
		meaning: "what else of a header of version 2 is logged, under `name`, and with `header` also told to http services in that request header " +
			"(`\"none\"`: not); one that clients send is removed. The types with names are listed below",
	},
	option[Upstream]{
		path: "proxy_protocol.upstream", initial: UpstreamNone, says: `"none"`,
		field: func(p *Listener) *Upstream { return &p.ProxyProtocol.Upstream },
		kind:  words(UpstreamNone, UpstreamV1, UpstreamV2),
		meaning: "the PROXY header that the service of a tcp listener gets, inside the mutual TLS of the mesh: its sidecar passes it on, " +
			"and the service has to expect it. http listeners have X-Forwarded-For instead, and are not touched",
	},
	option[YesNo]{
		path: "proxy_protocol.server_speaks_first", initial: No, says: `"no"`,
		field: func(p *Listener) *YesNo { return &p.ProxyProtocol.ServerSpeaksFirst },
		kind:  words(Yes, No),
		meaning: "`yes` where the service of a tcp listener greets before the client has sent anything (SMTP, MySQL, SSH, FTP). " +
			"PROXY protocol is then refused on the listener: Envoy waits for the first bytes of the client, and both would wait for each other",
	},
	option[XFF]{
		path: "client_address.xff", initial: XFFDefault, says: `"default"`,
		field: func(p *Listener) *XFF { return &p.ClientAddress.XFF },
		kind:  words(XFFDefault, XFFAppend, XFFOverwrite),
		meaning: "what services get as X-Forwarded-For: with `append` what the client sent and the client's address behind it, with `overwrite` " +
			"the client's address alone. `default` appends where PROXY protocol or another of these settings is on, and is else as behind Consul's own gateway: as the client sent it",
	},
	option[HopCount]{
		path: "client_address.trusted_hops", initial: NoHops, says: `"none"`,
		field: func(p *Listener) *HopCount { return &p.ClientAddress.TrustedHops },
		kind:  hops,
		meaning: "how many proxies in front of the gateway write X-Forwarded-For themselves and are trusted with it, not counting those that send PROXY headers: " +
			"with 1, the last entry of X-Forwarded-For is the client",
	},
	option[ForwardedProto]{
		path: "client_address.forwarded_proto", initial: ForwardedProto{Type: ForwardedProtoDefault}, says: `"default"`,
		field: func(p *Listener) *ForwardedProto { return &p.ClientAddress.ForwardedProto },
		kind:  forwardedProto,
		meaning: "what services get as X-Forwarded-Proto: with `connection`, whether the connection to the gateway had TLS; with `trust`, what the request says; " +
			"with `https_ports`, https if the client connected to one of these ports (with PROXY protocol: of the balancer's) or with TLS, else http. " +
			"`default` is `trust` with trusted hops, else `connection`",
	},
}, accessLogSchema...)

// groups are the objects that settings stand in, with what they are about.
var groups = []struct{ key, meaning string }{
	{"proxy_protocol", "PROXY protocol headers, with which a balancer says who the client of a connection is"},
	{"client_address", "The headers of requests, with which those in front of the gateway say who the client is. Of http, http2 and grpc listeners, with PROXY protocol and without"},
	{"access_log", "What is logged of requests and connections, how, and where to. On top of `AccessLogs` of the config entry `proxy-defaults`, which stay as they are where nothing is said here"},
}

// listenersKey holds the settings of single listeners, by port.
const listenersKey = "listeners"

// Schema describes all settings, in the order of their documentation.
func Schema() []Setting {
	out := make([]Setting, len(schema))
	for i, s := range schema {
		out[i] = s.description()
	}
	return out
}

// Groups gives the objects that settings stand in, and what each is about.
func Groups() (keys []string, meanings map[string]string) {
	meanings = map[string]string{}
	for _, g := range groups {
		keys = append(keys, g.key)
		meanings[g.key] = g.meaning
	}
	return keys, meanings
}

// inGroup gives the settings of a group by their keys in it.
func inGroup(group string) (keys []string, settings map[string]setting) {
	settings = map[string]setting{}
	for _, s := range schema {
		if key, ok := strings.CutPrefix(s.description().Path, group+"."); ok {
			keys = append(keys, key)
			settings[key] = s
		}
	}
	return keys, settings
}

// option is the setting that is a field of type T.
type option[T any] struct {
	path    string
	initial T
	says    string // initial, as it is written
	field   func(*Listener) *T
	kind    kind[T]
	meaning string
}

// kind is how values of a type are written.
type kind[T any] struct {
	takes string // completes "use …" in messages
	// read decodes a value; false: it is none of those that takes names.
	read func(d *decoder, where string, raw any) (T, bool)
}

func (o option[T]) description() Setting {
	return Setting{Path: o.path, Accepts: o.kind.takes, Default: o.says, Meaning: o.meaning}
}

func (o option[T]) decode(d *decoder, where string, raw any, into *Listener) {
	v, ok := o.kind.read(d, where, raw)
	if !ok {
		d.refuse(where, raw, o.kind.takes)
		return
	}
	*o.field(into) = v
}

func (o option[T]) resolve(into *Listener, said []*Listener) {
	*o.field(into) = o.initial
	for _, p := range said {
		if v := *o.field(p); !reflect.ValueOf(&v).Elem().IsZero() {
			*o.field(into) = v
			return
		}
	}
}
