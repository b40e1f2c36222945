package xds

import (
	"context"
	"errors"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
)

// The session as the stream servers see it.
var (
	_ cache.ConfigWatcher = (*session)(nil)
	_ delta.Callbacks     = (*session)(nil)
	_ sotw.Callbacks      = (*session)(nil)
)

// errEnded stops a stream server from sending what it still has queued.
var errEnded = errors.New("the stream has ended")

// CreateDeltaWatch hears a delta request and sends what is due. The returned
// function silences the type until its next request.
func (s *session) CreateDeltaWatch(req *cache.DeltaRequest, sub cache.Subscription, out chan cache.DeltaResponse) (func(), error) {
	return s.hear(req.GetTypeUrl(), request{
		subscription: sub,
		again:        req.GetResourceNamesSubscribe(),
		unwanted:     req.GetResourceNamesUnsubscribe(),
		versions:     req.GetInitialResourceVersions(),
		nonce:        req.GetResponseNonce(),
		problem:      req.GetErrorDetail(),
		deliver: func(r *response) {
			queue(out, cache.DeltaResponse(&deltaResponse{r, s, req}))
		},
	})
}

// CreateWatch hears a state-of-the-world request and sends what is due. The
// returned function silences the type until its next request.
func (s *session) CreateWatch(req *cache.Request, sub cache.Subscription, out chan cache.Response) (func(), error) {
	return s.hear(req.GetTypeUrl(), request{
		subscription: sub,
		claims:       req.GetVersionInfo(),
		nonce:        req.GetResponseNonce(),
		problem:      req.GetErrorDetail(),
		deliver: func(r *response) {
			queue(out, cache.Response(&sotwResponse{r, s, req}))
		},
	})
}

// queue never blocks. The stream servers' channels hold at least one response
// per type they know, and a conversation has at most one in flight per type.
func queue[T any](out chan T, r T) {
	select {
	case out <- r:
	default:
		panic("more responses in flight than types")
	}
}

func (s *session) hear(url string, r request) (func(), error) {
	t, ok := typeOf(url)
	if !ok {
		s.log.Debug("request for a type that is not served", "type", url)
		return nil, nil
	}
	s.talkOver(func(c *conversation) {
		s.judge(t, c.hear(t, r))
		s.watch(c.push())
	})
	return func() { s.silence(t) }, nil
}

// silence also works when the session is ending: the stream server closes its
// channel next.
func (s *session) silence(t Type) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.talk.pause(t)
}

// judge counts and logs what Envoy said about a response.
func (s *session) judge(t Type, v verdict) {
	if v.response == nil {
		return
	}
	if v.problem == nil {
		s.options.Metrics.acks.WithLabelValues(t.String()).Inc()
		s.log.Debug("acknowledged", "type", t, "nonce", v.response.nonce())
		return
	}
	s.options.Metrics.nacks.WithLabelValues(t.String()).Inc()
	s.log.Error("envoy rejected an update", "type", t, "version", v.response.version(),
		"nonce", v.response.nonce(), "resources", v.response.names(), "error", redact(v.problem.GetMessage()))
}

// seal fixes the content of a response: the stream server sends it now.
func (s *session) seal(r *response) error {
	err := errEnded
	s.talkOver(func(*conversation) {
		err = nil
		r.seal()
		t := r.topic.typ.String()
		s.options.Metrics.responses.WithLabelValues(t).Inc()
		s.options.Metrics.bytes.WithLabelValues(t).Add(float64(r.size()))
	})
	return err
}

// sent logs a response that has got its nonce.
func (s *session) sent(url, nonce string, resources, removed int) {
	t, _ := typeOf(url)
	s.log.Debug("sent", "type", t, "nonce", nonce, "resources", resources, "removed", removed)
}

// deltaResponse is a response for the delta stream server.
type deltaResponse struct {
	response *response
	session  *session
	request  *cache.DeltaRequest
}

func (d *deltaResponse) GetDeltaDiscoveryResponse() (*discoveryv3.DeltaDiscoveryResponse, error) {
	err := d.session.seal(d.response)
	return d.response.delta, err
}

func (d *deltaResponse) GetDeltaRequest() *cache.DeltaRequest { return d.request }
func (d *deltaResponse) GetContext() context.Context          { return d.session.ctx }

// GetSystemVersion and GetResponseVersion give nothing: a delta response has no
// version of its own.
func (d *deltaResponse) GetSystemVersion() (string, error) { return "", nil }
func (d *deltaResponse) GetResponseVersion() string        { return "" }

// GetNextVersionMap and GetReturnedResources give a map of their own: the topic
// keeps these books, but the stream server writes into the map.
func (d *deltaResponse) GetNextVersionMap() map[string]string    { return map[string]string{} }
func (d *deltaResponse) GetReturnedResources() map[string]string { return map[string]string{} }

// sotwResponse is a response for the state-of-the-world stream server.
type sotwResponse struct {
	response *response
	session  *session
	request  *cache.Request
}

func (w *sotwResponse) GetDiscoveryResponse() (*discoveryv3.DiscoveryResponse, error) {
	err := w.session.seal(w.response)
	return w.response.sotw, err
}

func (w *sotwResponse) GetRequest() *cache.Request  { return w.request }
func (w *sotwResponse) GetContext() context.Context { return w.session.ctx }
func (w *sotwResponse) GetVersion() (string, error) { return w.GetResponseVersion(), nil }

func (w *sotwResponse) GetResponseVersion() string              { return w.response.sotw.GetVersionInfo() }
func (w *sotwResponse) GetReturnedResources() map[string]string { return map[string]string{} }

// OnStreamDeltaRequest opens the session with the first request.
func (s *session) OnStreamDeltaRequest(_ int64, req *discoveryv3.DeltaDiscoveryRequest) error {
	return s.open(req.GetNode())
}

// OnStreamRequest opens the session with the first request.
func (s *session) OnStreamRequest(_ int64, req *discoveryv3.DiscoveryRequest) error {
	return s.open(req.GetNode())
}

// OnStreamDeltaResponse is called right before the response is sent.
func (s *session) OnStreamDeltaResponse(_ int64, _ *discoveryv3.DeltaDiscoveryRequest, r *discoveryv3.DeltaDiscoveryResponse) {
	s.sent(r.GetTypeUrl(), r.GetNonce(), len(r.GetResources()), len(r.GetRemovedResources()))
}

// OnStreamResponse is called right before the response is sent.
func (s *session) OnStreamResponse(_ context.Context, _ int64, _ *discoveryv3.DiscoveryRequest, r *discoveryv3.DiscoveryResponse) {
	s.sent(r.GetTypeUrl(), r.GetNonce(), len(r.GetResources()), 0)
}

// The rest of the callbacks has nothing to do: Server.serve begins and ends a
// session.

func (s *session) OnDeltaStreamOpen(context.Context, int64, string) error { return nil }
func (s *session) OnDeltaStreamClosed(int64, *corev3.Node)                {}
func (s *session) OnStreamOpen(context.Context, int64, string) error      { return nil }
func (s *session) OnStreamClosed(int64, *corev3.Node)                     {}
