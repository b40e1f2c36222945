package evidence

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// Key signs what Usher writes into the configuration of a listener, so that it recognizes the listener's reports. All
// replicas need the same key, because a report can reach any of them, and so does the next Usher after a restart:
// another key changes all listeners. The zero value signs nothing: listeners report nothing.
type Key struct{ secret string }

// NewKey returns the key that belongs to a secret. The secret has to be longer than can be guessed; an empty one gives
// the zero Key.
func NewKey(secret []byte) Key {
	if len(secret) == 0 {
		return Key{}
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("usher evidence key 1"))
	return Key{string(mac.Sum(nil))}
}

// minSecret is how many bytes a secret needs so that it cannot be guessed.
const minSecret = 16

// ErrShortKey is in the errors of ParseKey.
var ErrShortKey = fmt.Errorf("use at least %d random ones, such as those of \"openssl rand -hex 32\"", minSecret)

// ParseKey returns the key for the secret that a file or object has. Space around it does not count. The error is
// ErrShortKey if the rest can be guessed.
func ParseKey(content []byte) (Key, error) {
	secret := bytes.TrimSpace(content)
	if len(secret) < minSecret {
		return Key{}, fmt.Errorf("it has %d bytes; %w", len(secret), ErrShortKey)
	}
	return NewKey(secret), nil
}

// IsZero reports whether the key signs nothing.
func (k Key) IsZero() bool { return k.secret == "" }

// String never returns the secret.
func (k Key) String() string {
	if k.IsZero() {
		return "no key"
	}
	return "a key"
}

// GoString never returns the secret.
func (k Key) GoString() string { return k.String() }

// The metadata of a report.
const (
	ListenerKey  = "usher-listener"
	SignatureKey = "usher-signature"
)

// Metadata returns what an Envoy has to send with the reports of a listener. It reports false if the listener cannot
// report: there is no key, or the listener's settings are too long for a request's metadata.
func (k Key) Metadata(l Listener) (listener, signature string, ok bool) {
	listener = l.encode()
	return listener, k.sign(listener), !k.IsZero() && len(listener) <= maxListener
}

// maxListener bounds the metadata of a report, in bytes. A hundred networks fit in.
const maxListener = 4 << 10

func (k Key) sign(listener string) string {
	mac := hmac.New(sha256.New, []byte(k.secret))
	mac.Write([]byte(listener))
	return hex.EncodeToString(mac.Sum(nil))
}

var errSignature = errors.New("the report's signature is not of this Usher: its listener has another Usher's configuration, " +
	"or the replicas have different keys; give all of them the same --connection-report-key-secret or --connection-report-key-file")

var errNoKey = errors.New("usher does not have the key of reports yet; its log says why")

// verify returns the listener that a report is about.
func (k Key) verify(listener, signature string) (Listener, error) {
	if k.IsZero() {
		return Listener{}, errNoKey
	}
	if len(listener) > maxListener || !hmac.Equal([]byte(k.sign(listener)), []byte(signature)) {
		return Listener{}, errSignature
	}
	return decodeListener(listener)
}

// encode returns the listener as text for a metadata value, in which Envoy would read a "%" as an operator. Equal
// listeners have equal texts.
func (l Listener) encode() string {
	values := url.Values{"gateway": {l.Gateway.Name}, "port": {strconv.Itoa(l.Port)}, "mode": {string(l.Mode)}}
	set := func(key, value string) {
		if value != "" {
			values.Set(key, value)
		}
	}
	set("namespace", l.Gateway.Namespace)
	set("partition", l.Gateway.Partition)
	if l.FollowsService {
		set("follows", "service")
	}
	if l.Kubernetes != (gateway.KubernetesService{}) {
		set("service", l.Kubernetes.Namespace+"/"+l.Kubernetes.Name)
	}
	for _, p := range l.Trusted {
		values.Add("trusted", p.String())
	}
	return base64.RawURLEncoding.EncodeToString([]byte(values.Encode()))
}

// decodeListener is the inverse of encode.
func decodeListener(text string) (Listener, error) {
	decoded, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return Listener{}, err
	}
	values, err := url.ParseQuery(string(decoded))
	if err != nil {
		return Listener{}, err
	}
	l := Listener{
		Gateway: gateway.ID{Name: values.Get("gateway"), Namespace: values.Get("namespace"), Partition: values.Get("partition")},
		Mode:    settings.Mode(values.Get("mode")),
	}
	l.Kubernetes.Namespace, l.Kubernetes.Name, _ = strings.Cut(values.Get("service"), "/")
	if l.Port, err = strconv.Atoi(values.Get("port")); err != nil {
		return Listener{}, err
	}
	l.FollowsService = values.Get("follows") == "service"
	for _, text := range values["trusted"] {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return Listener{}, err
		}
		l.Trusted = append(l.Trusted, p)
	}
	return l, nil
}
