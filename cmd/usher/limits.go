package main

import (
	"fmt"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/xds"
)

// limitFlags adds the flags that bound what callers may use.
func limitFlags(f *pflag.FlagSet, l *xds.Limits, gateways *int) {
	d := xds.DefaultLimits
	f.IntVar(&l.Connections, "max-connections", connectionsFor(maxFiles()), "How many connections to the xDS port may be open. The default leaves a quarter of the files that the process may open for everything else.")
	f.IntVar(&l.ConnectionsPerPeer, "max-connections-per-peer", min(d.ConnectionsPerPeer, max(1, connectionsFor(maxFiles())/2)), "How many of them may come from one IP address, or from one IPv6 network of 64 bits.")
	f.IntVar(&l.Streams, "max-streams", d.Streams, "How many streams may be open; an Envoy has one.")
	f.IntVar(&l.StreamsPerPeer, "max-streams-per-peer", d.StreamsPerPeer, "How many of them may come from one IP address, or from one IPv6 network of 64 bits.")
	f.IntVar(&l.StreamRate, "max-stream-rate", d.StreamRate, "How many streams may be opened in a second. Ten times as many may come at once, and tokens that were authorised in the last ten minutes do not count.")
	f.IntVar(&l.StreamRatePerPeer, "max-stream-rate-per-peer", d.StreamRatePerPeer, "How many of them may come from one IP address, or from one IPv6 network of 64 bits.")
	f.IntVar(gateways, "max-gateways", controlplane.DefaultMaxGateways, "How many gateways are served at once.")
}

// checkLimits checks the flags of limitFlags. It keeps reservedFiles for the rest of
// the process.
func (o *serveOptions) checkLimits() error {
	l := o.limits
	for flag, value := range map[string]int{
		"max-connections": l.Connections, "max-connections-per-peer": l.ConnectionsPerPeer,
		"max-streams": l.Streams, "max-streams-per-peer": l.StreamsPerPeer,
		"max-stream-rate": l.StreamRate, "max-stream-rate-per-peer": l.StreamRatePerPeer,
		"max-gateways": o.maxGateways,
	} {
		if value < 1 {
			return fmt.Errorf("--%s %d: it has to be at least 1", flag, value)
		}
	}
	if most := maxFiles() - reservedFiles; l.Connections > most {
		return fmt.Errorf("--max-connections %d: the process may open %d files and needs %d of them for itself; raise the limit (ulimit -n, LimitNOFILE=) or take at most %d",
			l.Connections, maxFiles(), reservedFiles, most)
	}
	return nil
}

// reservedFiles is how many files the process needs for the connections to Consul
// and Kubernetes, for the admin port, and for the files that it follows.
const reservedFiles = 160

// connectionsFor returns the default of --max-connections if the process may open
// so many files.
func connectionsFor(files int) int {
	return max(1, min(4096, files*3/4, files-reservedFiles))
}

// maxFiles returns how many files the process may open.
func maxFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<30 {
		return 1 << 30
	}
	return int(limit.Cur)
}
