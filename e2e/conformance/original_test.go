//go:build e2e

package conformance

import (
	"fmt"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// original is what an Envoy gets from Consul: at first what it had when it had
// everything that its resources refer to, and then whatever comes in place of
// that. Under load Consul hands on a gateway of which it does not know all yet.
type original struct {
	suite     *suite
	views     chan view // of its Envoy; nil: nothing comes any more
	resources resources // canonical, in today's spelling
}

// take takes over what Consul gives now, if that is complete.
func (o *original) take(v view) error {
	if v.Missing != "" {
		return nil
	}
	r, err := o.suite.ref.modernise(v.Resources, o.suite.spelled).Canonical()
	if err != nil {
		return fmt.Errorf("consul: %w", err)
	}
	o.resources = r
	return nil
}

// askConsul returns what an Envoy gets from Consul, which stays connected until it
// is stopped. A gateway has no listeners, if nothing is to come, or some.
func (s *suite) askConsul(t *testing.T, nothing bool) (o *original, stop func(), err error) {
	t.Helper()
	e, stop := connect(t, s.consul.grpc)
	o = &original{suite: s, views: e.views}
	v, err := settled(e, func(v view) string {
		if n := len(v.Resources[resource.ListenerType]); nothing != (n == 0) {
			return fmt.Sprintf("what the case is about; there are %d listeners", n)
		}
		return ""
	})
	if err == nil {
		err = o.take(v)
	}
	if err != nil {
		stop()
		return nil, nil, fmt.Errorf("consul: %w", err)
	}
	return o, stop, nil
}

// settled waits until an Envoy has everything that its resources refer to, and
// lacks nothing else.
func settled(e *envoy, lacks func(view) string) (view, error) {
	missing := "any answer"
	timeout := time.NewTimer(settleDeadline)
	defer timeout.Stop()
	for {
		select {
		case v := <-e.views:
			if missing = v.Missing; missing == "" {
				missing = lacks(v)
			}
			if missing == "" {
				return v, nil
			}
		case <-timeout.C:
			return view{}, fmt.Errorf("not settled within %v: missing: %s", settleDeadline, missing)
		}
	}
}

// nothingElse is what an Envoy lacks that has everything its resources refer to.
func nothingElse(view) string { return "" }
