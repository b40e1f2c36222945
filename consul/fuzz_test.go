package consul

import (
	"reflect"
	"testing"
	"time"
)

// queryTypes are all query types.
var queryTypes = []*queryType{
	agentType, chainType, proxyDefaultsType, entriesType, healthType, instancesType, leafType, meshGatewayType, meshGatewayNamesType, meshType,
	peeringType, rootsType, servicesType, podType,
}

// answers are answers of Consul for each query type, and some that it never sends.
var answers = map[*queryType][]string{
	agentType: {`{"Config": {"BindAddr": "::1"}, "DebugConfig": {"DNSDomain": "consul."}, "xDS": {"Ports": {"Plaintext": 8502, "TLS": -1}}}`},
	chainType: {
		`{"Chain": {"ServiceName": "web", "Protocol": "http", "StartNode": "r", "Nodes": {"r": {"Type": "resolver", "Name": "web", "Resolver": {"Target": "t", "ConnectTimeout": "5s"}}}, "Targets": {"t": {"ID": "t", "Service": "web"}, "u": null}}}`,
		`{"Chain": {"StartNode": "r", "Nodes": {"r": {"Resolver": null, "Splits": [null], "Routes": [null]}}}}`,
	},
	proxyDefaultsType: {`[{"Name": "global", "Config": {"usher": {"proxy_protocol": {"mode": "strict"}}, "local_connect_timeout_ms": 1}}]`, `[{"Name": "global", "Config": null}]`},
	entriesType:       {`[{"Kind": "ingress-gateway", "Name": "edge", "TLS": {"Enabled": true}, "Listeners": [{"Port": 80, "Protocol": "http", "Services": [{"Name": "*", "Hosts": null, "PassiveHealthCheck": {"Interval": "1s"}}]}]}]`},
	instancesType:     {`[{"Node": {"Node": "a"}, "Service": {"Kind": "ingress-gateway", "ID": "edge", "Meta": null, "Proxy": {"Config": {"envoy_gateway_bind_addresses": {"a": {"Address": "::1", "Port": 1e9}}, "usher": [null]}}}, "Checks": [{"Status": 1}]}]`},
	leafType:          {`{"CertPEM": "a", "PrivateKeyPEM": "b", "ValidBefore": "9999-12-31T23:59:59-01:00"}`},
	meshType:          {`[{"Kind": "mesh", "TLS": {"Outgoing": {"TLSMinVersion": "TLSv1_2", "CipherSuites": [null]}}}]`, `[null]`},
	peeringType:       {`{"PeerServerName": "server.dc2.peering.x", "PeerCAPems": [null, "a"]}`},
	rootsType:         {`{"ActiveRootID": "a", "TrustDomain": "x", "Roots": [{"ID": "a", "RootCert": "b"}, null]}`},
	podType:           {`[{"ServiceID": "edge-1", "ServiceMeta": {"k8s-namespace": "consul", "pod-uid": null}}]`},
	servicesType:      {`[{"Service": {"Name": "web", "Namespace": "default"}, "Port": 80, "Protocol": "HTTP", "Hosts": [null]}]`},
	meshGatewayNamesType: {
		`{"mesh-gateway": null, "other": []}`,
	},
}

// FuzzAnswer checks that no answer to any query makes Usher panic, even after a good
// answer. It also checks that the same answer again has the same result.
func FuzzAnswer(f *testing.F) {
	health := string(healthAnswer(2).body)
	for i, k := range queryTypes {
		texts := append([]string{"", "null", "[]", "{}", "[[]]", "[null]", "[null, {}]", `[{}, {}]`, "1", `"x"`, "[", `{"Chain": null}`, health}, answers[k]...)
		for _, text := range texts {
			f.Add(uint(i), text, "null", false)
		}
		for _, text := range answers[k] {
			f.Add(uint(i), text, text, true)
		}
	}
	f.Fuzz(func(t *testing.T, which uint, first, second string, filtered bool) {
		k := queryTypes[which%uint(len(queryTypes))]
		before, err := k.decode(nil, response{body: []byte(first), index: 1, filtered: filtered})
		if err != nil {
			before = nil
		}
		after, err := k.decode(before, response{body: []byte(second), index: 2})
		if err != nil {
			return
		}
		again, err := k.decode(after, response{body: []byte(second), index: 3})
		if err != nil || !reflect.DeepEqual(again, after) {
			t.Errorf("%s: %q says %+v, and then %+v with the error %v", k.name, second, after, again, err)
		}
		if regs, ok := after.(*[]*registration); ok {
			newSnapshotBuild(input{}, state{}).addInstances(*regs, &proxyDefaults{})
		}
		if chain, ok := after.(*discoveryChain); ok && chain.Nodes[chain.StartNode] == nil {
			t.Errorf("%q gives a chain without a start", second)
		}
	})
}

// FuzzBearerToken checks that no bearer token makes Usher panic, and that none is taken for one that never expires unless
// it says so.
func FuzzBearerToken(f *testing.F) {
	for _, claims := range []string{`{"exp":1700000000}`, `{"exp":1e999}`, `{"exp":-1}`, `{"exp":"x"}`, `{"kubernetes.io":null}`, `{"kubernetes.io":{"namespace":"consul","pod":{"name":"edge-1"}}}`, "[]", ""} {
		f.Add(jwt(1, claims))
	}
	f.Add("a.b.c")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := parseClaims(token)
		if err != nil && (c.pod() != "" || !c.expiry().IsZero()) {
			t.Errorf("%q has no claims, and yet %v", token, c)
		}
		if e := c.expiry(); c.Expiry < 0 && e.After(time.Unix(0, 0)) {
			t.Errorf("%q expires at %v", token, e)
		}
	})
}

// FuzzSavedAllowances checks that no content of the state directory makes Usher panic, and that what it accepts is saved as it
// was read.
func FuzzSavedAllowances(f *testing.F) {
	hash := make([]byte, hashSize)
	f.Add(savedAllowances{Key: hash, ACLsOff: 1, Allowed: []savedAllowance{{hash, 2}}}.encode())
	for _, text := range []string{"", "null", "{}", `{"key":"AAAA"}`, `{"allowed":[null]}`, `{"key":[1,2]}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		saved, err := decodeAllowances(payload)
		if err != nil {
			return
		}
		again, err := decodeAllowances(saved.encode())
		if err != nil || !reflect.DeepEqual(saved, again) {
			t.Errorf("%v: %v, then %v", err, saved, again)
		}
		store := &memoryStore{content: map[string][]byte{allowancesName: payload}}
		restarted(store, time.Hour).counts(aclKey{})
	})
}
