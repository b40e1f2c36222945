package xds

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errShuttingDown ends the streams of a server that drains, and refuses new
// ones. Envoy connects again, to another Usher if there is one.
var errShuttingDown = status.Error(codes.Unavailable, "usher is shutting down; connect again")

// fewStreams is for how many streams Drain takes all the time that it is given.
// Fewer streams end sooner: the time is there to spread a crowd.
const fewStreams = 50

// living are the sessions of a server.
type living struct {
	mu       sync.Mutex
	sessions map[*session]struct{}
	draining bool
	none     chan struct{} // made by drain; closed when no session is left
}

// add reports whether the session may live.
func (l *living) add(s *session) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.draining {
		return false
	}
	if l.sessions == nil {
		l.sessions = map[*session]struct{}{}
	}
	l.sessions[s] = struct{}{}
	return true
}

func (l *living) remove(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.sessions, s)
	if l.draining && len(l.sessions) == 0 {
		close(l.none)
	}
}

// drain lets nothing in any more. It returns the sessions that live, in no
// order, and a channel that is closed when all of them have ended.
func (l *living) drain() ([]*session, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.draining, l.none = true, make(chan struct{})
	left := make([]*session, 0, len(l.sessions))
	for s := range l.sessions {
		left = append(left, s)
	}
	if len(left) == 0 {
		close(l.none)
	}
	return left, l.none
}

// Streams returns how many streams are open.
func (s *Server) Streams() int {
	s.living.mu.Lock()
	defer s.living.mu.Unlock()
	return len(s.living.sessions)
}

// Drain ends Serve: it takes no more connections and ends the open streams with
// Unavailable, one at once, and the others spread over the given time, so that not
// all Envoys connect to the remaining Ushers in one moment. When all streams have
// ended, or ctx has, it stops the server as Stop does. It must be called once.
func (s *Server) Drain(ctx context.Context, over time.Duration) {
	left, none := s.living.drain()
	stopped := make(chan struct{})
	// Each connection gets a GOAWAY, so that it takes no new stream: Envoy then
	// opens a new connection for its next stream, which leads to another Usher.
	go func() {
		defer close(stopped)
		s.grpc.GracefulStop()
	}()
	s.admission.closePending()
	s.endStreams(ctx, left, none, over)
	select {
	case <-stopped:
	case <-ctx.Done():
	}
	s.Stop()
	<-stopped
}

// endStreams ends streams over time, until there are none.
func (s *Server) endStreams(ctx context.Context, left []*session, none <-chan struct{}, over time.Duration) {
	gap := over / time.Duration(max(len(left), fewStreams))
	begin := time.Now()
	for i, e := range left {
		if i > 0 && gap > 0 {
			due := begin.Add(time.Duration(i-1)*gap + rand.N(gap))
			select {
			case <-time.After(time.Until(due)):
			case <-none:
				return
			case <-ctx.Done():
				return
			}
		}
		e.end(errShuttingDown)
	}
}
