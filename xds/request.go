package xds

import (
	"fmt"
	"strings"
	"unicode/utf8"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/usherproxy/usher/internal/wire"
)

// everything is the name that means all resources of a type.
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#how-the-client-specifies-what-resources-to-return
const wildcardName = "*"

// The most that a request may have.
const (
	maxRequest      = 4 << 20 // bytes
	maxRequestNames = 100_000
	maxName         = 2048 // bytes
)

// request is what both protocols say in a request.
type request struct {
	typeURL string
	// names are those that a delta Envoy asks for beside what it has asked
	// for before, and all that a state-of-the-world Envoy asks for.
	subscribe []string
	// unwanted are given up; delta only.
	unsubscribe []string
	// versions are what a delta Envoy has from an earlier stream, by name;
	// claims is what a state-of-the-world Envoy has.
	initialVersions map[string]string
	versionInfo     string
	// nonce names the response that the request answers; empty: none.
	nonce string
	// problem is not nil in a NACK.
	errorDetail *statuspb.Status
}

// node returns the encoded node of a request; nil if it has none.
func (p protocol) node(f frame) (node []byte, err error) {
	err = wire.Fields(f, func(number protowire.Number, value []byte) error {
		if number == p.fields.node {
			node = value
		}
		return nil
	})
	return node, err
}

// decode reads all of a request but its node. Its errors are fit for a status.
func (p protocol) decode(f frame) (request, error) {
	var r request
	var count int
	err := wire.Fields(f, func(number protowire.Number, value []byte) error {
		var err error
		switch number {
		case p.fields.typeURL:
			r.typeURL, err = text(value)
		case p.fields.nonce:
			r.nonce, err = text(value)
		case p.fields.versionInfo:
			r.versionInfo, err = text(value)
		case p.fields.errorDetail:
			r.errorDetail, err = decodeErrorDetail(value)
		case p.fields.subscribe:
			err = appendName(&r.subscribe, value, &count)
		case p.fields.unsubscribe:
			err = appendName(&r.unsubscribe, value, &count)
		case p.fields.initialVersions:
			err = r.addVersion(value, &count)
		}
		return err
	})
	return r, err
}

// decodeProblem reads the message of a google.rpc.Status.
func decodeErrorDetail(encoded []byte) (*statuspb.Status, error) {
	problem := &statuspb.Status{}
	err := wire.Fields(encoded, func(number protowire.Number, value []byte) error {
		if number == 2 {
			problem.Message = strings.ToValidUTF8(string(value), "\uFFFD")
		}
		return nil
	})
	return problem, err
}

// addVersion reads an entry of initial_resource_versions.
func (r *request) addVersion(entry []byte, count *int) error {
	var name []string
	var version string
	err := wire.Fields(entry, func(number protowire.Number, value []byte) error {
		var err error
		switch number {
		case 1:
			name = nil
			err = appendName(&name, value, count)
		case 2:
			version, err = text(value)
		}
		return err
	})
	if err != nil || len(name) == 0 {
		return err
	}
	if r.initialVersions == nil {
		r.initialVersions = map[string]string{}
	}
	r.initialVersions[name[0]] = version
	return nil
}

func appendName(names *[]string, value []byte, count *int) error {
	if *count++; *count > maxRequestNames {
		return fmt.Errorf("it has more than %d names", maxRequestNames)
	}
	name, err := text(value)
	*names = append(*names, name)
	return err
}

// text reads a name or a version.
func text(value []byte) (string, error) {
	switch {
	case len(value) > maxName:
		return "", fmt.Errorf("it has a name of more than %d bytes", maxName)
	case !utf8.Valid(value):
		return "", wire.ErrDamaged
	}
	return string(value), nil
}

// verdict is what a request said about the response it answers.
type ackResult struct {
	// response is nil if the request answers none.
	response *response
	// problem is Envoy's message; nil in an ACK.
	errorDetail *statuspb.Status
}

// hear brings a topic up to date with a request. It sends nothing.
func (t *typeState) handleRequest(r request) ackResult {
	if t.sotw && t.lastNonce != "" && r.nonce != t.lastNonce {
		return ackResult{} // the answer to the latest response says it all again
	}
	v := t.recordAck(r)
	first := !t.started
	if first {
		t.start(r)
	}
	if t.sotw {
		t.applyFullList(r.subscribe)
	} else {
		t.applyDelta(r, first)
	}
	return v
}

// settle ends the wait for an ACK, if this is it.
func (t *typeState) recordAck(r request) ackResult {
	answered := t.inflight
	if answered == nil || r.nonce != answered.nonce {
		return ackResult{}
	}
	t.inflight = nil
	t.nacked = r.errorDetail != nil
	return ackResult{response: answered, errorDetail: r.errorDetail}
}

// start takes over what Envoy has from an earlier stream. What has to be sent
// again because its parent was sent already is not believed to be there.
//
// For listeners and clusters no names mean all, until there are any. For the
// other types no names mean none.
func (t *typeState) start(r request) {
	t.started, t.versionInfo = true, r.versionInfo
	t.legacyWildcard = t.typ.isFullState()
	t.setWildcard(t.legacyWildcard && len(r.subscribe) == 0)
	for name, version := range r.initialVersions {
		t.put(name, nameState{sent: true, version: version})
	}
	for name := range t.resendOnSubscribe {
		t.put(name, nameState{})
	}
	t.resendOnSubscribe = nil
}

// amend follows a delta request. A name that is asked for again is sent again;
// one that is given up while everything is wanted has to be told about once
// more. https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#unsubscribing-from-resources
func (t *typeState) applyDelta(r request, first bool) {
	t.legacyWildcard = t.legacyWildcard && len(r.subscribe) == 0
	for _, name := range r.subscribe {
		if name == wildcardName {
			t.setWildcard(true)
			continue
		}
		t.setNamed(name, true)
		if !first {
			t.invalidate(name)
		}
	}
	for _, name := range r.unsubscribe {
		switch {
		case name == wildcardName:
			t.setWildcard(t.legacyWildcard)
		case t.wildcard:
			t.setNamed(name, false)
			t.invalidate(name)
		default:
			t.put(name, nameState{})
		}
	}
}

// replace follows a state-of-the-world request, which lists every name.
func (t *typeState) applyFullList(names []string) {
	t.legacyWildcard = t.legacyWildcard && len(names) == 0
	if t.legacyWildcard {
		return
	}
	wanted := nameSet(names)
	_, all := wanted[wildcardName]
	delete(wanted, wildcardName)
	t.setWildcard(all)
	for name, e := range t.all() {
		if _, ok := wanted[name]; ok || !e.named {
			continue
		}
		e.named = false
		if !all {
			e = nameState{}
		}
		t.put(name, e)
	}
	for name := range wanted {
		if e := t.get(name); !e.named {
			e.named, e.dirty = true, true
			t.put(name, e)
		}
	}
}
