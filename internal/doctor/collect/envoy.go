package collect

import (
	"bufio"
	"bytes"
	"context"
	"net/url"
	"strconv"
	"strings"

	"github.com/usherproxy/usher/internal/envoyadmin"
)

// connectedState is the gauge that is 1 while Envoy has a stream to its control plane.
const connectedState = "control_plane.connected_state"

// counterFilter selects the counters that say what connections begin with and why there is no stream, and connectedState.
const counterFilter = `^(proxy_proto\.|http\.ingress_upstream_.*\.downstream_cx_(total|protocol_error)$|listener\..*\.ssl\.(connection_error|handshake)$|` +
	`cluster\.local_agent\.(ssl\.(fail_verify_error|connection_error)|upstream_cx_connect_fail)$|control_plane\.connected_state$)`

// readCounters returns the counters by name.
func readCounters(ctx context.Context, envoy envoyadmin.Client) (map[string]uint64, error) {
	ctx, cancel := inTime(ctx)
	defer cancel()
	text, err := envoy.Get(ctx, "/stats?filter="+url.QueryEscape(counterFilter))
	if err != nil {
		return nil, err
	}
	all := map[string]uint64{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			all[name] = n
		}
	}
	return all, nil
}
