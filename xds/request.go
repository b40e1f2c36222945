package xds

import (
	"fmt"
	"strings"
	"unicode/utf8"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/usherproxy/usher/internal/wire"
)

// The most that a request may have.
const (
	maxRequest      = 4 << 20 // bytes
	maxRequestNames = 100_000
	maxName         = 2048 // bytes
)

// request is a decoded request of either protocol, without its node.
type request struct {
	typeURL string
	// subscribe are the names that a delta Envoy adds to its subscription, and all names in that of a
	// state-of-the-world Envoy. unsubscribe are the names that a delta Envoy removes.
	subscribe, unsubscribe []string
	// initialVersions are what a delta Envoy has from an earlier stream, by name; versionInfo is what a
	// state-of-the-world Envoy has.
	initialVersions map[string]string
	versionInfo     string
	nonce           string           // of the response that the request answers, or empty
	errorDetail     *statuspb.Status // not nil in a NACK
}

// decode decodes a request. Its errors may be sent to the caller.
func (p protocol) decode(raw rawRequest) (request, error) {
	var r request
	err := wire.Fields(raw, func(number protowire.Number, value []byte) (err error) {
		switch number {
		case p.fields.typeURL:
			r.typeURL, err = decodeText(value)
		case p.fields.nonce:
			r.nonce, err = decodeText(value)
		case p.fields.versionInfo:
			r.versionInfo, err = decodeText(value)
		case p.fields.errorDetail:
			r.errorDetail, err = decodeErrorDetail(value)
		case p.fields.subscribe:
			r.subscribe, err = appendText(r.subscribe, value)
		case p.fields.unsubscribe:
			r.unsubscribe, err = appendText(r.unsubscribe, value)
		case p.fields.initialVersions:
			err = r.addVersion(value)
		}
		if len(r.subscribe)+len(r.unsubscribe)+len(r.initialVersions) > maxRequestNames {
			return fmt.Errorf("it has more than %d resource names", maxRequestNames)
		}
		return err
	})
	return r, err
}

// decodeErrorDetail decodes the message of a google.rpc.Status.
func decodeErrorDetail(encoded []byte) (*statuspb.Status, error) {
	message, err := wire.Field(encoded, 2)
	return &statuspb.Status{Message: strings.ToValidUTF8(string(message), "\uFFFD")}, err
}

// addVersion decodes an item of the map initial_resource_versions.
func (r *request) addVersion(item []byte) error {
	name, err := textField(item, mapKey)
	if err != nil {
		return err
	}
	if r.initialVersions == nil {
		r.initialVersions = map[string]string{}
	}
	r.initialVersions[name], err = textField(item, mapValue)
	return err
}

func textField(message []byte, number protowire.Number) (string, error) {
	value, err := wire.Field(message, number)
	if err != nil {
		return "", err
	}
	return decodeText(value)
}

func appendText(texts []string, value []byte) ([]string, error) {
	text, err := decodeText(value)
	return append(texts, text), err
}

// decodeText decodes a name or a version.
func decodeText(value []byte) (string, error) {
	switch {
	case len(value) > maxName:
		return "", fmt.Errorf("a name or version in it has more than %d bytes", maxName)
	case !utf8.Valid(value):
		return "", wire.ErrInvalid
	}
	return string(value), nil
}
