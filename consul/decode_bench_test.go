package consul

import (
	"bytes"
	"fmt"
	"testing"
)

// healthAnswer is what Consul 1.22.0 says of a service with n instances.
func healthAnswer(n int) answer {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, `,{"Node":{"ID":"","Node":"node-%[1]d","Address":"10.0.0.%[1]d","Datacenter":"dc1","TaggedAddresses":null,"Meta":null,"CreateIndex":20,"ModifyIndex":20},
"Service":{"Kind":"connect-proxy","ID":"web-%[1]d-sidecar-proxy","Service":"web-sidecar-proxy","Tags":[],"Address":"10.1.0.%[1]d",
"TaggedAddresses":{"lan_ipv4":{"Address":"10.1.0.%[1]d","Port":21000},"wan_ipv4":{"Address":"10.1.0.%[1]d","Port":21000}},"Meta":null,"Port":21000,
"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Proxy":{"DestinationServiceName":"web","DestinationServiceID":"web-%[1]d","LocalServiceAddress":"127.0.0.1",
"LocalServicePort":8080,"Mode":"","MeshGateway":{},"Expose":{}},"Connect":{},"PeerName":"","CreateIndex":20,"ModifyIndex":20},
"Checks":[{"Node":"node-%[1]d","CheckID":"service:web-%[1]d-sidecar-proxy:1","Name":"Connect Sidecar Listening","Status":"passing","Notes":"",
"Output":"TCP connect 10.1.0.%[1]d:21000: Success","ServiceID":"web-%[1]d-sidecar-proxy","ServiceName":"web-sidecar-proxy","ServiceTags":[],"Type":"tcp","Interval":"10s",
"Timeout":"","ExposedPort":0,"Definition":{},"PeerName":"","CreateIndex":20,"ModifyIndex":20}]}`, i+1)
	}
	return answer{body: append(append([]byte("["), bytes.TrimPrefix(b.Bytes(), []byte(","))...), ']'), index: 20}
}

// BenchmarkDecode is what an answer about a service costs that says something
// new, and one that says the same again.
func BenchmarkDecode(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		a := healthAnswer(n)
		b.Run(fmt.Sprintf("new/instances=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				e, err := decodeEndpoints(nil, a)
				if err != nil || len(e.Endpoints) != n {
					b.Fatal(err, e)
				}
			}
		})
		b.Run(fmt.Sprintf("same/instances=%d", n), func(b *testing.B) {
			l := &watchLoop{decode: healthType.decode, update: func(watchResult, bool) {}}
			l.handle(a, nil)
			b.ReportAllocs()
			for b.Loop() {
				l.handle(a, nil)
			}
		})
	}
}
