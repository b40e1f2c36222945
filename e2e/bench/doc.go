//go:build e2e

// Bench measures Consul's own xDS and Usher side by side, on one real Consul
// and with the same fake Envoys. `make bench` runs it.
//
// It is a program and not a test: it has no verdict, never fails because of a
// time, wants flags of its own, and must not run with the stories.
//
// How each number is made:
//
//   - Every time of a change counts from the moment at which its write is sent
//     to Consul to the moment at which the slowest Envoy has read it. The floor
//     is a bare blocking query on the changed service in the same run; it
//     counts from the same moment.
//   - A ratio to Consul comes from changes that both deliver in one run. A
//     multiple of the floor comes from a second run, without Envoys on
//     Consul's own xDS: that would take all cores. It begins when both
//     processes have come to rest.
//   - CPU is the time that the kernel counts for that one process. Consul's
//     includes what Usher's queries and the writes cost it.
//   - Bytes are those of the discovery responses, without gRPC's framing.
//   - A row is the median of its rounds, and a ratio the median of the rounds'
//     ratios.
//
// It needs no root: all parts listen on a loopback address of their own.
package main
