package consul

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/usherproxy/usher/internal/problem"
)

// Store keeps payloads by name beyond the end of the process.
type Store interface {
	Write(name string, payload []byte) error
	// Read returns what was written last. The error is fs.ErrNotExist if there is nothing.
	Read(name string) (payload []byte, written time.Time, err error)
	// Remove removes what was written. It is no error if there is nothing.
	Remove(name string) error
	// Path returns the directory, for messages.
	Path() string
}

// allowancesName is the name in a Store, and allowancesFile that of the file.
const (
	allowancesName = "authorizations"
	allowancesFile = allowancesName + ".state"
)

const (
	maxAllowed = 65_536
	// maxClockStep is how far in the future a time may be that counts: clocks are corrected by seconds. A time that is
	// later was written by a clock that was wrong, and says nothing about the age.
	maxClockStep = time.Minute
	// allowancesPause is the shortest time between two writes, and allowancesInterval the longest one while only times have changed.
	allowancesPause    = time.Second
	allowancesInterval = time.Minute
)

// allowances are the callers that Consul has allowed, with the time when it did so last, for use while Consul does not
// answer. They have keyed hashes of the tokens, never the tokens. With a Store, they outlive the process. The methods are
// safe for concurrent use.
type allowances struct {
	client *Client
	store  Store // nil: they end with the process
	logger *slog.Logger
	maxAge time.Duration  // how long an allowance counts
	key    [hashSize]byte // of the hashes
	allow  *lru.Cache[aclKey, time.Time]
	urgent chan struct{} // receives if a change is not to wait for allowancesInterval; its capacity is 1

	mu         sync.Mutex
	domain     string    // the trust domain of the Consul that has allowed them; empty: not known
	aclsOffAt  time.Time // when Consul last answered that its ACLs are off
	unsaved    bool      // something has changed since the last write
	revoked    bool      // the Store has something that no longer counts
	saveFailed bool
	// allowsRefused means that the Store allows a caller that Consul refuses, and cannot be changed. Only save uses it.
	allowsRefused bool
}

// newAllowances returns the allowances in the store, which may be nil; with a maxAge of 0, it removes them.
func newAllowances(c *Client, store Store, maxAge time.Duration) *allowances {
	logger := c.logger
	a := &allowances{client: c, store: store, logger: logger, maxAge: maxAge, urgent: make(chan struct{}, 1)}
	_, _ = rand.Read(a.key[:])                          // never fails
	a.allow, _ = lru.New[aclKey, time.Time](maxAllowed) // fails only for sizes below 1
	switch {
	case store == nil:
	case maxAge == 0:
		a.store = nil
		if err := store.Remove(allowancesName); err != nil {
			logger.Warn("cannot remove which tokens consul has allowed, although --authorization-stale-if-error is 0s; "+
				"remove the file from the state directory", "error", err)
		}
	default:
		if err := a.load(); err != nil {
			logger.Warn("cannot read which tokens consul has allowed before; while consul does not answer, no Envoy may connect", "error", err)
		}
	}
	return a
}

// add records that Consul allows the caller now.
func (a *allowances) add(key aclKey) {
	isNew := !a.allow.Contains(key)
	a.allow.Add(key, time.Now())
	a.change(isNew, false)
}

// remove records that Consul no longer allows the caller.
func (a *allowances) remove(key aclKey) {
	if a.allow.Remove(key) {
		a.change(true, true)
	}
}

// setACLsOff records whether Consul's ACLs are off now. While they are, every caller is allowed, and only that is
// recorded: otherwise a caller could fill the memory with names that it makes up.
func (a *allowances) setACLsOff(off bool) {
	a.mu.Lock()
	before := !a.aclsOffAt.IsZero()
	a.aclsOffAt = time.Time{}
	if off {
		a.aclsOffAt = time.Now()
	}
	a.mu.Unlock()
	if off || before {
		a.change(off != before, !off)
	}
}

// forgetOtherCluster forgets everything if Consul's roots have another trust domain: it is another cluster now.
func (a *allowances) forgetOtherCluster() {
	now := a.client.trustDomain()
	a.mu.Lock()
	other := now != "" && a.domain != "" && a.domain != now
	if now != "" && a.domain != now {
		a.domain, a.unsaved = now, true
	}
	if other {
		a.aclsOffAt = time.Time{}
		a.allow.Purge()
	}
	a.mu.Unlock()
	if other {
		a.logger.Warn("consul has another trust domain, so usher forgets which tokens consul has allowed before", "trust_domain", now)
		a.change(true, true)
	}
}

// counts reports whether Consul has allowed the caller within maxAge.
func (a *allowances) counts(key aclKey) bool {
	a.forgetOtherCluster()
	a.mu.Lock()
	off := a.aclsOffAt
	a.mu.Unlock()
	at, _ := a.allow.Peek(key)
	return a.isRecent(off) || a.isRecent(at)
}

func (a *allowances) isRecent(at time.Time) bool {
	age := time.Since(at)
	return !at.IsZero() && age < a.maxAge && age > -maxClockStep
}

// change notes that the Store is out of date.
func (a *allowances) change(urgent, revoked bool) {
	a.mu.Lock()
	a.unsaved, a.revoked = true, a.revoked || revoked
	a.mu.Unlock()
	if urgent {
		notify(a.urgent)
	}
}

// run writes changes to the Store until ctx ends: new and revoked ones at once, but at most once in allowancesPause.
func (a *allowances) run(ctx context.Context) {
	if a.store == nil {
		return
	}
	ticker := time.NewTicker(allowancesInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.urgent:
		case <-ticker.C:
		}
		if a.save() {
			sleep(ctx, allowancesPause)
		}
	}
}

// save writes the changes since the last write. If that fails, what is revoked must not stay in the Store: save then
// removes all. It reports whether there was something to write.
func (a *allowances) save() bool {
	a.forgetOtherCluster()
	a.mu.Lock()
	unsaved, revoked := a.unsaved, a.revoked
	a.unsaved, a.revoked = false, false
	a.mu.Unlock()
	if a.store == nil || !unsaved {
		return false
	}
	err := a.store.Write(allowancesName, a.encode())
	if err != nil && revoked {
		if removing := a.store.Remove(allowancesName); removing != nil {
			err = errors.Join(err, removing)
		} else {
			revoked = false
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case err != nil:
		a.unsaved, a.revoked = true, a.revoked || revoked
		if !a.saveFailed {
			a.logger.Warn("cannot save which tokens consul has allowed; if usher restarts while consul does not answer, their Envoys cannot connect",
				"error", err)
		}
	case a.saveFailed:
		a.logger.Info("which tokens consul has allowed is saved again")
	}
	a.saveFailed = err != nil
	a.reportRefused(err != nil && revoked, err)
	return true
}

// reportRefused reports whether the Store allows a caller that Consul refuses.
func (a *allowances) reportRefused(allowed bool, err error) {
	if allowed == a.allowsRefused {
		return
	}
	a.allowsRefused = allowed
	path := filepath.Join(a.store.Path(), allowancesFile)
	if !allowed {
		a.logger.Info("the saved authorizations no longer allow a refused token", "file", path)
		a.client.report(allowancesSource, nil)
		return
	}
	a.logger.Warn("the saved authorizations still allow a refused token, if usher restarts while consul does not answer; remove the file",
		"file", path, "error", err)
	a.client.report(allowancesSource, []problem.Problem{{
		Where: path,
		What: fmt.Sprintf("remove it: it still allows a refused token, if Usher restarts while Consul does not answer; "+
			"Usher can neither write nor remove it: %v", err),
	}})
}

// allowancesSource is the source of the problem of reportRefused.
const allowancesSource = "the saved authorizations"

// savedAllowances is the form in a Store.
type savedAllowances struct {
	Consul  []string         `json:"consul"`            // its addresses
	Domain  string           `json:"domain,omitempty"`  // its trust domain; empty: not known
	Key     []byte           `json:"key"`               // of the hashes
	ACLsOff int64            `json:"aclsOff,omitempty"` // when Consul last answered so, in Unix seconds; 0: they are on
	Allowed []savedAllowance `json:"allowed"`           // the one that was used longest ago is the first
}

type savedAllowance struct {
	Hash []byte `json:"hash"`
	At   int64  `json:"at"` // in Unix seconds
}

// encode returns what counts, for a Store.
func (a *allowances) encode() []byte {
	saved := savedAllowances{Consul: a.client.addresses(), Key: a.key[:], Allowed: []savedAllowance{}}
	now := time.Now()
	a.mu.Lock()
	saved.Domain = a.domain
	if !a.aclsOffAt.IsZero() {
		saved.ACLsOff = wallTime(a.aclsOffAt, now)
	}
	a.mu.Unlock()
	for _, key := range a.allow.Keys() {
		if at, ok := a.allow.Peek(key); ok && a.isRecent(at) {
			saved.Allowed = append(saved.Allowed, savedAllowance{key[:], wallTime(at, now)})
		}
	}
	return saved.encode()
}

func (s savedAllowances) encode() []byte {
	payload, _ := json.Marshal(s) // fails for no such value
	return payload
}

// wallTime returns a time by the clock as it is now, which may have been set meanwhile.
func wallTime(at, now time.Time) int64 { return now.Round(0).Add(-now.Sub(at)).Unix() }

// load takes over what is in the Store.
func (a *allowances) load() error {
	payload, _, err := a.store.Read(allowancesName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	saved, err := decodeAllowances(payload)
	if err != nil {
		return err
	}
	if err := a.client.ownAddress(saved.Consul); err != nil {
		a.change(true, true) // its tokens are not to count later either
		return err
	}
	a.key, a.domain = [hashSize]byte(saved.Key), saved.Domain
	switch {
	case saved.ACLsOff == 0:
	case a.client.tokens.isSet(): // ACLs are probably on now
		a.change(true, true)
	default:
		a.aclsOffAt = time.Unix(saved.ACLsOff, 0)
	}
	for _, s := range saved.Allowed {
		a.allow.Add(aclKey(s.Hash), time.Unix(s.At, 0))
	}
	return nil
}

// decodeAllowances reads what encode returns.
func decodeAllowances(payload []byte) (saved savedAllowances, err error) {
	if err := json.Unmarshal(payload, &saved); err != nil {
		return savedAllowances{}, fmt.Errorf("the saved authorizations are not what Usher writes: %w", err)
	}
	valid := len(saved.Key) == hashSize
	for _, s := range saved.Allowed {
		valid = valid && len(s.Hash) == hashSize
	}
	if !valid {
		return savedAllowances{}, errors.New("the saved authorizations are not what Usher writes: a hash has another size")
	}
	return saved, nil
}
