package statuspage

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// streamTimes are the times of a stream.
type streamTimes struct {
	write     time.Duration // how long a page may take to read a message
	heartbeat time.Duration // how often a page gets something, so that neither it nor a proxy in between takes the stream for dead
}

// serveEvents streams the state, and then what changes. The stream ends with the server.
func (p *Page) serveEvents(w http.ResponseWriter, r *http.Request) {
	release, ok := p.streams.TryAcquire()
	if !ok {
		w.Header().Set("Retry-After", "10")
		http.Error(w, fmt.Sprintf("this Usher has %d open status pages, and serves no more; close one of them", maxStreams), http.StatusServiceUnavailable)
		return
	}
	defer release()
	stream := &eventStream{times: p.times, writer: w, controller: http.NewResponseController(w)}
	// The server's own deadlines are for requests with a short answer.
	if err := stream.controller.SetReadDeadline(time.Time{}); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	setHeaders(w.Header())
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for stream.send(p.feed.divide()) == nil {
		select {
		case <-r.Context().Done():
			return
		case <-ticker.C:
		}
	}
}

// eventStream is the stream of one page.
type eventStream struct {
	times      streamTimes
	writer     http.ResponseWriter
	controller *http.ResponseController
	sent       map[string]*part // what the page has; nil: nothing yet
	sentAt     time.Time
}

// send writes what has changed; after some time without a change, a message that says so. An error means that the page does
// not read it.
func (s *eventStream) send(now parts) error {
	m, changed := now.since(s.sent)
	if !changed && time.Since(s.sentAt) < s.times.heartbeat {
		return nil
	}
	encoded, err := json.Marshal(m)
	if err != nil {
		return err
	}
	s.sent, s.sentAt = now.items, time.Now()
	if err := s.controller.SetWriteDeadline(time.Now().Add(s.times.write)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(s.writer, "data: %s\n\n", encoded); err != nil {
		return err
	}
	if err := s.controller.Flush(); err != nil {
		return err
	}
	// HTTP/2 ends the stream at a deadline, even if nothing is being written.
	return s.controller.SetWriteDeadline(time.Time{})
}
