package consul

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/retry"
	"github.com/usherproxy/usher/internal/statedir"
)

const (
	saveDelay    = time.Second     // from the first change to its write, so that changes at the same time are one write
	saveInterval = 5 * time.Second // between two writes of a gateway
	saveShare    = 20              // of one processor, one part of so many
	// A file is written at least every savedRefresh while its gateway is watched, and no longer used when it is older than
	// savedMaxAge. So files of gateways that Usher no longer watches do not stay.
	savedRefresh = 24 * time.Hour
	savedMaxAge  = 30 * 24 * time.Hour
)

// stateStore keeps the last valid answers about each gateway in the state directory. Its goroutine (run) writes; a
// gatewayWatch only hands over what has changed. A nil *stateStore keeps nothing.
type stateStore struct {
	dir    *statedir.Dir
	client *Client
	wake   chan struct{} // receives when a gateway has something to write; its capacity is 1
	// usable are the certificates towards the mesh in the files that could be used at the start.
	usable []*gateway.Leaf

	mu       sync.Mutex
	gateways map[gateway.ID]*storedGateway
	failures int // failed writes in a row
}

// storedGateway is what the store knows about a gateway. The mutex of the store guards it.
type storedGateway struct {
	content savedGateway // its map of answers is never shared
	due     time.Time    // when it is written; zero if the file has the content
	writing bool
	written time.Time // when the file was written; zero if there is none
	watched bool
}

// openStateStore returns the store in a directory. It checks all files, and removes those that are too old.
func openStateStore(dir *statedir.Dir, c *Client) *stateStore {
	s := &stateStore{dir: dir, client: c, wake: make(chan struct{}, 1), gateways: map[gateway.ID]*storedGateway{}}
	dir.OnReplaced(s.writeAgain)
	names, err := dir.Names()
	if err != nil {
		c.logger.Warn("cannot list the files of the state directory; usher starts without them", "state_dir", dir.Path(), "error", err)
		s.failures = 1
		s.reportFailure(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, savedPrefix) {
			s.check(name)
		}
	}
	return s
}

// check reads a file at the start.
func (s *stateStore) check(name string) {
	g, written := s.read(name)
	if g == nil {
		return
	}
	if time.Since(written) > savedMaxAge {
		if err := s.dir.Remove(name); err != nil {
			s.client.logger.Warn("cannot remove an old file of the state directory", "file", name, "error", err)
		}
		return
	}
	for q, a := range g.answers {
		if q.queryType != leafType {
			continue
		}
		if leaf, err := valueOf[gateway.Leaf](q, a.response()); err == nil {
			s.usable = append(s.usable, leaf)
		}
	}
	s.client.logger.Info("the state of a gateway is saved; usher uses it while consul does not answer",
		"gateway", g.id.String(), "saved", written.UTC(), "datacenter", g.datacenter, "answers", len(g.answers))
}

// read returns the content of a file of this Consul; nil if there is none that can be used.
func (s *stateStore) read(name string) (*savedGateway, time.Time) {
	payload, written, err := s.dir.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, time.Time{}
	}
	var g *savedGateway
	if err == nil {
		err = guard.Run(s.client.logger, "state", func() (err error) {
			g, err = decodeSaved(payload, written)
			return err
		})
	}
	if err == nil && savedName(g.id) != name {
		err = fmt.Errorf("it is of the gateway %q", g.id.String())
	}
	if err == nil {
		err = s.client.ownAddress(g.consul)
	}
	if err != nil {
		s.client.logger.Warn("usher does not use a saved state, and waits for consul's answers", "file", name, "error", err)
		return nil, time.Time{}
	}
	return g, written
}

// canServe reports whether a gateway has a saved certificate that has not expired. Without one, no new Envoy gets a listener.
func (s *stateStore) canServe(now time.Time) bool {
	return s != nil && slices.ContainsFunc(s.usable, func(leaf *gateway.Leaf) bool { return checkSaved(leaf, now) == nil })
}

// isKeyless reports whether private keys are not saved.
func (s *stateStore) isKeyless() bool { return s != nil && !s.dir.Encrypted() }

// begin returns what is saved about a gateway that is watched from now on.
func (s *stateStore) begin(id gateway.ID) (answers map[query]*answer, certificate *gateway.Leaf) {
	if s == nil {
		return nil, nil
	}
	s.mu.Lock()
	g := s.gateways[id]
	s.mu.Unlock()
	if g == nil {
		g = &storedGateway{content: savedGateway{id: id, consul: s.client.addresses()}}
		if saved, written := s.read(savedName(id)); saved != nil {
			g.content, g.written = *saved, written
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g.watched = true
	s.gateways[id] = g
	s.client.metrics.setSaved(id, g.written)
	return g.content.restorable(time.Now()), g.content.certificate
}

// restorable returns the answers as those of a file. The ones that were not in one yet count as saved now.
func (g *savedGateway) restorable(now time.Time) map[query]*answer {
	answers := make(map[query]*answer, len(g.answers))
	for q, a := range g.answers {
		if a.saved.IsZero() {
			a = &answer{body: a.body, filtered: a.filtered, refused: a.refused, saved: now, trustDomain: g.trustDomain}
		}
		answers[q] = a
	}
	return answers
}

// end ends the watch of a gateway. The store forgets it when everything is written.
func (s *stateStore) end(id gateway.ID) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.gateways[id]
	g.watched = false
	s.forgetUnused(id, g)
}

// forgetUnused forgets a gateway that is neither watched nor to be written. The caller holds mu.
func (s *stateStore) forgetUnused(id gateway.ID, g *storedGateway) {
	if g.watched || g.writing || !g.due.IsZero() {
		return
	}
	delete(s.gateways, id)
	s.client.metrics.removeSaved(id)
}

// update takes new results of some of the queries of a gateway.
func (s *stateStore) update(id gateway.ID, updates map[query]queryResult) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.gateways[id]
	if len(g.content.answers) == 0 {
		return // Consul says that the gateway is not registered any more
	}
	changed := false
	for q, r := range updates {
		if r.answer != nil && g.content.answers[q] != r.answer {
			g.content.answers[q], changed = r.answer, true
		}
	}
	if changed {
		s.makeDue(g, time.Now())
	}
}

// replace takes all results of a gateway, in place of the ones before. Without any, the file is removed.
func (s *stateStore) replace(id gateway.ID, results map[query]queryResult, certificate *certState, snapshot *gateway.Snapshot) {
	if s == nil {
		return
	}
	answers := make(map[query]*answer, len(results))
	for q, r := range results {
		if r.answer != nil {
			answers[q] = r.answer
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.gateways[id]
	next := savedGateway{id: id, consul: s.client.addresses(), answers: answers, certificate: g.content.certificate}
	if snapshot != nil {
		next.datacenter, next.trustDomain = snapshot.Datacenter, snapshot.Roots.TrustDomain
		next.certificate = certificate.toSave(next.certificate)
	} else {
		next.certificate = nil
	}
	changed := next.certificate != g.content.certificate || !maps.Equal(answers, g.content.answers)
	g.content = next
	if changed {
		s.makeDue(g, time.Now())
	}
}

// makeDue makes the goroutine write a gateway. The caller holds mu.
func (s *stateStore) makeDue(g *storedGateway, now time.Time) {
	if !g.due.IsZero() {
		return
	}
	g.due = now.Add(saveDelay)
	if next := g.written.Add(saveInterval); g.due.Before(next) && !next.After(now.Add(saveInterval)) {
		g.due = next
	}
	notify(s.wake)
}

// run writes until ctx ends, and then what is not written yet.
func (s *stateStore) run(ctx context.Context) {
	for {
		wait := s.writeDue(ctx, time.Now())
		select {
		case <-ctx.Done():
			s.writeAll()
			return
		case <-s.wake:
		case <-time.After(wait):
		}
	}
}

// writeDue writes one gateway whose time has come, and rests for as long as its share asks. It returns how long to wait
// before the next.
func (s *stateStore) writeDue(ctx context.Context, now time.Time) (wait time.Duration) {
	id, due := s.next(now)
	switch {
	case due.IsZero():
		return savedRefresh / 24
	case due.After(now):
		return due.Sub(now)
	}
	sleep(ctx, s.write(id)*(saveShare-1))
	return 0
}

// next returns the gateway that is to be written first, and when; a zero time if none is.
func (s *stateStore) next(now time.Time) (first gateway.ID, due time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, g := range s.gateways {
		if g.watched && g.due.IsZero() && now.Sub(g.written) > savedRefresh && g.content.confirmed() {
			g.due = now
		}
		if !g.due.IsZero() && (due.IsZero() || g.due.Before(due)) {
			first, due = id, g.due
		}
	}
	return first, due
}

// confirmed reports whether there are answers, and all of them are Consul's to this process.
func (g *savedGateway) confirmed() bool {
	for _, a := range g.answers {
		if !a.saved.IsZero() {
			return false
		}
	}
	return len(g.answers) > 0
}

func (s *stateStore) writeAll() {
	s.mu.Lock()
	var ids []gateway.ID
	for id, g := range s.gateways {
		if !g.due.IsZero() {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.write(id)
	}
}

// write writes a gateway, and returns how long a processor was busy with that.
func (s *stateStore) write(id gateway.ID) (busy time.Duration) {
	s.mu.Lock()
	g := s.gateways[id]
	content := g.content
	content.answers = maps.Clone(content.answers)
	g.due, g.writing = time.Time{}, true
	s.mu.Unlock()

	err := guard.Run(s.client.logger, "state", func() (err error) {
		busy, err = s.replaceFile(&content)
		return err
	})

	s.mu.Lock()
	defer s.mu.Unlock()
	g.writing = false
	if err != nil {
		s.writeFailed(id, err)
		return busy
	}
	g.written = time.Now()
	if len(content.answers) == 0 {
		g.written = time.Time{}
	}
	s.client.metrics.setSaved(id, g.written)
	s.writeSucceeded()
	s.forgetUnused(id, g)
	return busy
}

// replaceFile writes the file of a gateway, or removes it if there is nothing to save. It returns how long a processor was
// busy.
func (s *stateStore) replaceFile(g *savedGateway) (busy time.Duration, err error) {
	if len(g.answers) == 0 {
		return 0, s.dir.Remove(savedName(g.id))
	}
	begin := time.Now()
	payload, err := g.encode(s.dir.Encrypted())
	busy = time.Since(begin)
	if err != nil {
		return busy, err
	}
	return busy, s.dir.Write(savedName(g.id), payload)
}

// writeAgain has everything written again, because the directory is another one.
func (s *stateStore) writeAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.gateways {
		if len(g.content.answers) > 0 {
			s.makeDue(g, time.Now())
		}
	}
}

// writeFailed has the gateway written again later. The caller holds mu.
func (s *stateStore) writeFailed(id gateway.ID, err error) {
	s.failures++
	s.client.metrics.saveFailures.Inc()
	s.gateways[id].due = time.Now().Add(max(saveInterval, retry.Pause(s.failures)))
	if s.failures == 1 {
		s.client.logger.Warn("cannot save the state of a gateway; usher serves all the same, and tries again",
			"state_dir", s.dir.Path(), "gateway", id.String(), "error", err)
	}
	s.reportFailure(err)
}

func (s *stateStore) reportFailure(err error) {
	s.client.report(stateDirectory, []problem.Problem{{
		Where: "state directory " + s.dir.Path(),
		What: fmt.Sprintf("cannot be written: %v; Usher serves all the same, but one that starts without Consul would serve what was saved before; "+
			"make room on the disk, and let the user that runs usher write there", err),
	}})
}

// writeSucceeded ends the problem of writeFailed. The caller holds mu.
func (s *stateStore) writeSucceeded() {
	if s.failures == 0 {
		return
	}
	s.failures = 0
	s.client.logger.Info("the state of gateways can be saved again", "state_dir", s.dir.Path())
	s.client.report(stateDirectory, nil)
}

// stateDirectory is the source of the problems of the store.
const stateDirectory = "the state directory"
