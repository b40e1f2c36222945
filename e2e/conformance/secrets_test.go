//go:build e2e

package conformance

import (
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/listeners"
)

const sds = resource.SecretType

// secretRules are those of what Consul puts into clusters and listeners. The
// last one is about the whole mesh.
var secretRules = []rule{
	{name: "all-types-in-order", better: certificatesAreSecrets, run: allTypesInOrder},
	{name: "listeners-wait-for-secrets", better: certificatesAreSecrets, run: listenersWaitForSecrets},
	{name: "certificate-without-names", better: certificatesAreSecrets, run: certificateWithoutNames},
	{name: "a-new-root-is-one-secret", better: certificatesAreSecrets, run: aNewRootIsOneSecret},
}

const certificatesAreSecrets = "certificates are secrets, and no part of every cluster and listener"

// allTypesInOrder asks for everything, in another order, before there is
// anything: when it comes, it comes at once.
func allTypesInOrder(s *script) {
	s.addService("a")
	s.expose([]string{"a"}, nil)
	e := s.connect()
	e.Subscribe(rds, routesName)
	e.Subscribe(lds)
	e.Subscribe(eds, s.cluster("a"))
	e.Subscribe(cds)
	e.Subscribe(sds, listeners.LeafSecret, listeners.RootsSecret)
	s.register("10.0.1.1")
	if !s.onConsul() {
		e.ExpectAck(sds, listeners.LeafSecret, listeners.RootsSecret)
	}
	clusters := e.Expect(cds, s.cluster("a"))
	endpoints := e.Expect(eds, s.cluster("a"))
	e.Ack(clusters)
	e.Ack(endpoints)
	e.ExpectAck(lds, listenerName)
	e.ExpectAck(rds, routesName)
	s.wantNothingElse(e)
}

func listenersWaitForSecrets(s *script) {
	s.serve("a")
	e := s.connect()
	e.Subscribe(cds)
	e.Subscribe(lds)
	clusters := e.Expect(cds, s.cluster("a"))
	e.Subscribe(sds, listeners.LeafSecret, listeners.RootsSecret)
	var secrets fakeenvoy.Response
	if !s.onConsul() {
		secrets = e.Expect(sds, listeners.LeafSecret, listeners.RootsSecret)
	}
	e.Subscribe(eds, s.cluster("a"))
	e.ExpectAck(eds, s.cluster("a"))
	e.Ack(clusters)
	if !s.onConsul() {
		// All is accepted but the secrets.
		e.Subscribe(eds, s.cluster("a"))
		e.ExpectAck(eds, s.cluster("a"))
		e.Ack(secrets)
	}
	e.ExpectAck(lds, listenerName)
	e.Subscribe(rds, routesName)
	e.ExpectAck(rds, routesName)
}

// certificateWithoutNames has a listener with TLS, and then without.
func certificateWithoutNames(s *script) {
	s.register("10.0.1.1")
	s.addService("a")
	write := func(enabled bool) {
		s.writeEntry("ingress-gateway", s.gateway, map[string]any{"TLS": map[string]any{"Enabled": enabled}, "Listeners": []any{
			map[string]any{"Port": 8080, "Protocol": "http", "Services": []any{map[string]any{"Name": s.service("a")}}},
		}})
	}
	write(true)
	s.follow()
	s.awaitText(lds, listenerName, "DownstreamTlsContext")
	e := s.connect()
	if !s.onConsul() {
		e.Subscribe(sds, listeners.LeafSecret, listeners.RootsSecret, listeners.ServingSecret)
		e.ExpectAck(sds, listeners.LeafSecret, listeners.RootsSecret, listeners.ServingSecret)
	}
	s.warm(e, "a")
	write(false)
	// Towards the mesh, too, there is another certificate, without names.
	if s.onConsul() {
		for r := e.Next(); r.Type != cds; r = e.Next() {
			e.Ack(r)
		}
		return
	}
	secrets := e.Expect(sds, listeners.LeafSecret)
	// The listener waits for it.
	e.Subscribe(eds, s.cluster("a"))
	e.ExpectAck(eds, s.cluster("a"))
	e.Ack(secrets)
	e.ExpectAck(lds, listenerName)
	e.ExpectAck(rds, routesName)
	// What clients were shown goes without a word, as endpoints do.
	s.wantNothingElse(e)
}

// aNewRootIsOneSecret changes what the whole mesh trusts. New certificates come
// later, within half a minute.
func aNewRootIsOneSecret(s *script) {
	s.serve("a")
	e := s.connect()
	if !s.onConsul() {
		e.Subscribe(sds, listeners.RootsSecret)
		e.ExpectAck(sds, listeners.RootsSecret)
	}
	s.warm(e, "a")
	bits := map[bool]int{true: 384, false: 521}[s.onConsul()]
	if _, err := s.suite.consul.client.Connect().CASetConfig(&api.CAConfig{
		Provider: "consul", Config: map[string]any{"PrivateKeyType": "ec", "PrivateKeyBits": bits},
	}, nil); err != nil {
		s.t.Fatal(err)
	}
	if s.onConsul() {
		e.ExpectAck(cds, s.cluster("a"))
		e.ExpectAck(eds, s.cluster("a"))
		return
	}
	e.ExpectAck(sds, listeners.RootsSecret)
	s.wantNothingElse(e)
}
