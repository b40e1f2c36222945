//go:build e2e

package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	xds "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protowire"
)

// sign is by what a resource shows that a change has arrived.
type sign struct {
	typeURL string
	service string // whose clusters or endpoints show it; "" for any resource
	shows   func(body []byte) bool
}

// portSign is shown by the endpoints of a service when one has the port: field 3
// of their SocketAddress.
func portSign(service string, port int) sign {
	encoded := protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), uint64(port))
	return sign{xds.EndpointType, service, func(body []byte) bool { return bytes.Contains(body, encoded) }}
}

// textSign is shown by any resource of the type that contains the text.
func textSign(typeURL, text string) sign {
	return sign{typeURL, "", func(body []byte) bool { return bytes.Contains(body, []byte(text)) }}
}

// expectation is that every Envoy of a fleet gets every sign. A nil one expects
// nothing.
type expectation struct {
	mu    sync.Mutex
	signs map[signKey][]*sign
	seen  map[sighting]bool
	shown map[showing]bool // whether a version shows a sign, asked once
	left  int
	last  time.Time     // when the latest sign was seen
	done  chan struct{} // closed when all were
}

type signKey struct{ typeURL, service string }

type sighting struct {
	envoy int
	sign  *sign
}

type showing struct {
	resource *resource
	sign     *sign
}

func newExpectation(envoys int, signs []sign) *expectation {
	e := &expectation{
		signs: map[signKey][]*sign{}, seen: map[sighting]bool{}, shown: map[showing]bool{},
		left: envoys * len(signs), done: make(chan struct{}),
	}
	for _, s := range signs {
		key := signKey{s.typeURL, s.service}
		e.signs[key] = append(e.signs[key], &s)
	}
	return e
}

// observe takes note of a resource that an Envoy has read.
func (e *expectation) observe(envoy int, typeURL string, r *resource, body []byte, at time.Time) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, service := range []string{serviceOf(r.name), ""} {
		for _, s := range e.signs[signKey{typeURL, service}] {
			if by := (sighting{envoy, s}); !e.seen[by] && e.shows(r, s, body) {
				e.seen[by] = true
				e.left--
				e.last = at
			}
		}
	}
	if e.left == 0 {
		e.left = -1
		close(e.done)
	}
}

func (e *expectation) shows(r *resource, s *sign, body []byte) bool {
	shown, known := e.shown[showing{r, s}]
	if !known {
		shown = s.shows(body)
		e.shown[showing{r, s}] = shown
	}
	return shown
}

// wait waits for the slowest Envoy, and returns the time at which it had all.
func (e *expectation) wait(ctx context.Context) (time.Time, error) {
	select {
	case <-e.done:
		return e.last, nil
	case <-ctx.Done():
		e.mu.Lock()
		defer e.mu.Unlock()
		return time.Time{}, fmt.Errorf("%d signs of a change have not arrived: %w", e.left, context.Cause(ctx))
	}
}
