package consul

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// answer is a good response to a query as Consul sent it. The state directory keeps it, because Consul's JSON is the same
// for many releases of Usher, and because the decoder of the query type then checks it.
type answer struct {
	body              []byte
	filtered, refused bool // as in response
	// saved is when Usher wrote the answer into the file from which it comes. It is zero if Consul gave the answer to
	// this process. trustDomain is that of the mesh in the same file; empty if unknown.
	saved       time.Time
	trustDomain string
}

func newAnswer(r response) *answer {
	// The buffer in which a body arrives has up to twice its size.
	return &answer{body: bytes.Clone(r.body), filtered: r.filtered, refused: r.refused}
}

func (a *answer) response() response {
	return response{body: a.body, filtered: a.filtered, refused: a.refused}
}

// savedGateway is what a file of the state directory has about a gateway.
type savedGateway struct {
	id          gateway.ID
	consul      []string // the addresses of the Consul that gave the answers
	datacenter  string
	trustDomain string
	answers     map[query]*answer
	certificate *gateway.Leaf // for clients; nil if there is none. Of one from a file, only the two PEMs are set
}

// savedTypes are the query types whose answers can be saved, by name.
var savedTypes = func() map[string]*queryType {
	byName := map[string]*queryType{}
	for _, t := range []*queryType{
		agentType, rootsType, leafType, entriesType, meshType, proxyDefaultsType, instancesType, servicesType, chainType,
		healthType, meshGatewayType, meshGatewayNamesType, peeringType,
	} {
		byName[t.name] = t
	}
	return byName
}()

// savedIndex is the first line of a payload, in JSON. The bodies of the answers follow it, in the same order and with
// nothing in between. All of it is compressed with gzip.
type savedIndex struct {
	Gateway, Datacenter, TrustDomain string
	Consul                           []string // addresses
	Answers                          []savedAnswer
	Certificate                      *savedCertificate `json:",omitempty"`
}

type savedAnswer struct {
	Type                          string
	Name, Namespace, Partition    string    `json:",omitempty"`
	QueryDatacenter, Peer, Filter string    `json:",omitempty"`
	Filtered, Refused             bool      `json:",omitempty"`
	Saved                         time.Time `json:",omitzero"` // if it was restored and Consul has not confirmed it yet
	Size                          int       // of the body, in bytes
}

type savedCertificate struct{ CertPEM, KeyPEM string }

// maxSaved bounds how many bytes a payload has when it is not compressed: a broken file must not use up the memory.
const maxSaved = 256 << 20

// encode returns the payload of the file. Without secrets, it leaves out what has private keys.
func (g *savedGateway) encode(secrets bool) ([]byte, error) {
	index := savedIndex{Gateway: g.id.String(), Consul: g.consul, Datacenter: g.datacenter, TrustDomain: g.trustDomain}
	queries := slices.SortedFunc(maps.Keys(g.answers), compareQueries)
	queries = slices.DeleteFunc(queries, func(q query) bool { return q.queryType == leafType && !secrets })
	for _, q := range queries {
		a := g.answers[q]
		index.Answers = append(index.Answers, savedAnswer{
			Type: q.queryType.name, Name: q.name, Namespace: q.namespace, Partition: q.partition, QueryDatacenter: q.datacenter, Peer: q.peer, Filter: q.filter,
			Filtered: a.filtered, Refused: a.refused, Saved: a.saved, Size: len(a.body),
		})
	}
	if c := g.certificate; c != nil && secrets {
		index.Certificate = &savedCertificate{c.CertPEM, string(c.KeyPEM)}
	}
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	err = json.NewEncoder(z).Encode(index)
	for _, q := range queries {
		if err == nil {
			_, err = z.Write(g.answers[q].body)
		}
	}
	err = cmp.Or(err, z.Close())
	return out.Bytes(), err
}

func compareQueries(a, b query) int {
	return cmp.Or(
		cmp.Compare(a.queryType.name, b.queryType.name), cmp.Compare(a.partition, b.partition), cmp.Compare(a.namespace, b.namespace),
		cmp.Compare(a.name, b.name), cmp.Compare(a.datacenter, b.datacenter), cmp.Compare(a.peer, b.peer), cmp.Compare(a.filter, b.filter),
	)
}

// decodeSaved returns the content of a payload that was written at a time.
func decodeSaved(payload []byte, written time.Time) (*savedGateway, error) {
	z, err := gzip.NewReader(bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(io.LimitReader(z, maxSaved))
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	var index savedIndex
	if err := json.Unmarshal(line, &index); err != nil {
		return nil, errors.New("its index is not valid") // an error of json may quote a part of a key
	}
	id, ok := gateway.ParseID(index.Gateway)
	if !ok {
		return nil, fmt.Errorf("it is of no gateway, but of %q", index.Gateway)
	}
	g := &savedGateway{id: id, consul: index.Consul, datacenter: index.Datacenter, trustDomain: index.TrustDomain, answers: map[query]*answer{}}
	for _, s := range index.Answers {
		if err := g.readAnswer(r, s, written); err != nil {
			return nil, err
		}
	}
	if c := index.Certificate; c != nil {
		g.certificate = &gateway.Leaf{CertPEM: c.CertPEM, KeyPEM: gateway.Secret(c.KeyPEM)}
	}
	return g, nil
}

// readAnswer reads the body of an answer. It leaves out one of a type that this release does not have.
func (g *savedGateway) readAnswer(r io.Reader, s savedAnswer, written time.Time) error {
	if s.Size < 0 || s.Size > maxBody {
		return fmt.Errorf("an answer has %d bytes", s.Size)
	}
	body := make([]byte, s.Size)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	t := savedTypes[s.Type]
	if t == nil {
		return nil
	}
	saved := s.Saved
	if saved.IsZero() {
		saved = written
	}
	q := query{queryType: t, name: s.Name, namespace: s.Namespace, partition: s.Partition, datacenter: s.QueryDatacenter, peer: s.Peer, filter: s.Filter}
	g.answers[q] = &answer{body: body, filtered: s.Filtered, refused: s.Refused, saved: saved, trustDomain: g.trustDomain}
	return nil
}

var notInFileNames = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// savedPrefix begins the names of the files of gateways.
const savedPrefix = "gateway-"

// savedName returns the name of the file of a gateway: a part that people recognize, and one that no other gateway has.
func savedName(id gateway.ID) string {
	text := id.String()
	sum := sha256.Sum256([]byte(text))
	readable := notInFileNames.ReplaceAllString(text, "_")
	return savedPrefix + readable[:min(len(readable), 64)] + "-" + hex.EncodeToString(sum[:8])
}
