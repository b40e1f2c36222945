package evidence

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	logsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	recordsv1 "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// edge is a listener with everything that one can have.
var edge = Listener{
	Gateway:    gateway.ID{Name: "edge&=%/\n", Namespace: "team a", Partition: "p"},
	Kubernetes: gateway.KubernetesService{Namespace: "consul", Name: "consul-ingress-gateway"},
	Port:       8080, Mode: settings.Strict,
	Trusted:        []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
	FollowsService: true,
}

func metadataOf(t *testing.T, k Key, l Listener) metadata.MD {
	t.Helper()
	listener, signature, ok := k.Metadata(l)
	if !ok {
		t.Fatal("the listener cannot report")
	}
	return metadata.Pairs(ListenerKey, listener, SignatureKey, signature)
}

// report encodes log entries as Envoy does.
func report(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var records []*recordsv1.LogRecord
	for _, e := range entries {
		body := &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: e.String()}}
		records = append(records, &recordsv1.LogRecord{Body: body})
	}
	message, err := proto.Marshal(&logsv1.ExportLogsServiceRequest{ResourceLogs: []*recordsv1.ResourceLogs{{
		ScopeLogs: []*recordsv1.ScopeLogs{{LogRecords: records}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return message
}

func TestAReportIsAboutTheListenerThatWasSigned(t *testing.T) {
	t.Parallel()
	key := NewKey([]byte("a secret of all replicas"))
	for _, l := range []Listener{edge, {Gateway: gateway.ID{Name: "edge"}, Port: 443, Mode: settings.Off}} {
		listener, signature, _ := key.Metadata(l)
		if strings.Contains(listener+signature, "%") {
			t.Errorf("%q: Envoy reads a %% in metadata as an operator", listener)
		}
		if _, proof, err := NewReceiver(key, nil).Authenticate(metadataOf(t, key, l)); err != nil || proof != signature {
			t.Errorf("the proof is %q, %v", proof, err)
		}
		if got, err := key.verify(listener, signature); err != nil || !reflect.DeepEqual(got, l) {
			t.Errorf("got %+v, %v; want %+v", got, err, l)
		}
	}
}

// TestSignaturesStayTheSame: with another one, each listener of each gateway changes when Usher is
// upgraded, and what the old ones report until then is refused.
func TestSignaturesStayTheSame(t *testing.T) {
	t.Parallel()
	const want = "81442df417d1aba73327ad5087a9a00078fbe43436dbebf71217d887f3391d24"
	if _, signature, _ := NewKey([]byte("a secret of all replicas")).Metadata(edge); signature != want {
		t.Errorf("the signature is %s", signature)
	}
}

// TestStrangersReportNothing gives a receiver what a caller without the
// listener's configuration could send.
func TestStrangersReportNothing(t *testing.T) {
	t.Parallel()
	key := NewKey([]byte("a secret of all replicas"))
	receiver := NewReceiver(key, NewStore(nil))
	right := metadataOf(t, key, edge)
	other, long := edge, edge
	other.Port = 8443
	for range 400 {
		long.Trusted = append(long.Trusted, netip.MustParsePrefix("fd00::/8"))
	}
	if listener, _, ok := key.Metadata(long); ok || len(listener) <= maxListener {
		t.Errorf("a listener whose metadata has %d bytes reports", len(listener))
	}
	for name, md := range map[string]metadata.MD{
		"nothing":                nil,
		"no signature":           metadata.Pairs(ListenerKey, right.Get(ListenerKey)[0]),
		"another key's":          metadataOf(t, NewKey([]byte("another secret of others")), edge),
		"another listener's":     metadata.Pairs(ListenerKey, metadataOf(t, key, other).Get(ListenerKey)[0], SignatureKey, right.Get(SignatureKey)[0]),
		"two listeners":          metadata.Join(right, metadataOf(t, key, other)),
		"a listener of 5 KiB":    metadata.Pairs(ListenerKey, long.encode(), SignatureKey, key.sign(long.encode())),
		"a signature of nothing": metadata.Pairs(ListenerKey, "", SignatureKey, key.sign("")),
	} {
		if _, _, err := receiver.Authenticate(md); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	listener, signature, ok := Key{}.Metadata(edge)
	if ok {
		t.Error("a listener reports without a key")
	}
	if _, _, err := NewReceiver(Key{}, NewStore(nil)).Authenticate(metadata.Pairs(ListenerKey, listener, SignatureKey, signature)); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a key: %v", err)
	}
	if _, _, err := receiver.Authenticate(right); err != nil {
		t.Errorf("the right one: %v", err)
	}
}

// TestAKeyThatComesLaterCounts replaces a receiver's key.
func TestAKeyThatComesLaterCounts(t *testing.T) {
	t.Parallel()
	key := NewKey([]byte("a secret of all replicas"))
	receiver := NewReceiver(Key{}, NewStore(nil))
	receiver.SetKey(key)
	if _, _, err := receiver.Authenticate(metadataOf(t, key, edge)); err != nil {
		t.Error(err)
	}
}

func TestParseKey(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef"
	if got, err := ParseKey([]byte(" " + secret + "\n")); err != nil || got != NewKey([]byte(secret)) {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := ParseKey([]byte(secret[1:] + "\n")); !errors.Is(err, ErrShortKey) || !got.IsZero() {
		t.Errorf("15 bytes: got %v, %v", got, err)
	}
}

func TestReportsAreCounted(t *testing.T) {
	t.Parallel()
	key, store := NewKey([]byte("a secret of all replicas")), NewStore(nil)
	receive, _, err := NewReceiver(key, store).Authenticate(metadataOf(t, key, edge))
	if err != nil {
		t.Fatal(err)
	}
	if err := receive(report(t, byClient, byClient, entry{bytes: "0", direct: "10.9.9.9:1"}, entry{direct: "no address"})); err != nil {
		t.Fatal(err)
	}
	got := store.following(edge.Gateway, edge.Kubernetes)[8080]
	if got.WithHeader.Count != 2 || got.Refused.Count != 1 || got.Untrusted.Count != 0 || !got.Restricted {
		t.Errorf("got %+v", got)
	}
	for name, message := range map[string][]byte{"garbage": []byte("\xff\xff"), "too long": make([]byte, maxReport+1)} {
		if err := receive(message); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAKeyNeverShowsItsSecret(t *testing.T) {
	t.Parallel()
	key := NewKey([]byte("a secret of all replicas"))
	if !key.IsZero() && key.String() == "a key" && key.GoString() == "a key" && (Key{}).String() == "no key" && NewKey(nil).IsZero() {
		return
	}
	t.Errorf("%v %#v", key, key)
}

func FuzzReport(f *testing.F) {
	f.Add([]byte{}, "")
	f.Add([]byte{10, 2, 18, 0}, edge.encode())
	f.Fuzz(func(t *testing.T, message []byte, listener string) {
		store := NewStore(nil)
		_ = NewReceiver(Key{}, store).add(edge, message)
		if l, err := decodeListener(listener); err == nil {
			if again, err := decodeListener(l.encode()); err != nil || !reflect.DeepEqual(again, l) {
				t.Errorf("%+v became %+v, %v", l, again, err)
			}
		}
	})
}
