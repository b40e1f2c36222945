//go:build e2e

package chaos

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
)

// action is what a kind does at its beginning and at its end, which is nil for a change that stays.
type action struct{ begin, lift func(w *world, s Step) }

var actions = map[Kind]action{
	KillConsul: {
		func(w *world, s Step) { w.takeServer(s).Kill() },
		func(w *world, s Step) { w.startServer(w.chosen[s]) },
	},
	StopConsul: {
		func(w *world, s Step) { w.takeServer(s).Signal(w.t, syscall.SIGSTOP) },
		func(w *world, s Step) { w.continueServer(w.chosen[s]) },
	},
	KillAllConsul: {
		func(w *world, _ Step) { w.takeAllServers(func(a *lab.Consul) { a.Kill() }) },
		func(w *world, _ Step) { w.eachServer(w.startServer) },
	},
	StopAllConsul: {
		func(w *world, _ Step) { w.takeAllServers(func(a *lab.Consul) { a.Signal(w.t, syscall.SIGSTOP) }) },
		func(w *world, _ Step) { w.eachServer(w.continueServer) },
	},
	KillUsher:    {func(w *world, s Step) { w.usherOf(s).Kill() }, (*world).startUsher},
	RestartUsher: {func(w *world, s Step) { w.usherOf(s).Stop(w.t) }, (*world).startUsher},
	StopUsher: {
		func(w *world, s Step) { w.usherOf(s).Signal(w.t, syscall.SIGSTOP) },
		func(w *world, s Step) { w.usherOf(s).Signal(w.t, syscall.SIGCONT) },
	},
	KillEnvoy: {
		func(w *world, s Step) {
			w.envoyOf(s).begin(true)
			w.envoyOf(s).Kill()
		},
		func(w *world, s Step) {
			e := w.envoyOf(s)
			e.Process = e.Again(w.t)
			e.outputs = append(e.outputs, e.Stdout)
			w.endWhenServing(e)
		},
	},
	StopEnvoy: {
		func(w *world, s Step) {
			w.envoyOf(s).begin(false)
			w.envoyOf(s).Signal(w.t, syscall.SIGSTOP)
		},
		func(w *world, s Step) {
			w.envoyOf(s).Signal(w.t, syscall.SIGCONT)
			if !w.envoyOf(s).endStop() {
				w.endWhenServing(w.envoyOf(s))
			}
		},
	},
	KillInstance: {
		func(w *world, _ Step) {
			w.second().begin(true)
			w.second().Kill()
		},
		func(w *world, _ Step) {
			w.second().Process = w.second().Again(w.t)
			w.second().endWhen(w.t, w.second().listens)
		},
	},
	StopInstance: {
		func(w *world, _ Step) {
			w.second().begin(false)
			w.second().Signal(w.t, syscall.SIGSTOP)
		},
		func(w *world, _ Step) {
			w.second().Signal(w.t, syscall.SIGCONT)
			if !w.second().endStop() {
				w.second().endWhen(w.t, w.second().listens)
			}
		},
	},
	ResetConsulLink: {onConsulLinks((*lab.Link).Reset), restoreConsulLinks},
	CutConsulLink:   {onConsulLinks((*lab.Link).Cut), restoreConsulLinks},
	SlowConsulLink: {func(w *world, s Step) {
		onConsulLinks(func(l *lab.Link) { l.Slow(delay(s)) })(w, s)
	}, restoreConsulLinks},
	ResetXDSLink: {func(w *world, s Step) { w.envoyOf(s).link.Reset() }, restoreXDSLink},
	CutXDSLink:   {func(w *world, s Step) { w.envoyOf(s).link.Cut() }, restoreXDSLink},
	SlowXDSLink:  {func(w *world, s Step) { w.envoyOf(s).link.Slow(delay(s)) }, restoreXDSLink},
	RotateCA:     {func(w *world, s Step) { w.rotate(s, longLeaf) }, nil},
	ShortLeaf: {
		func(w *world, s Step) { w.rotate(s, shortLeaf) },
		func(w *world, s Step) { w.rotate(s, longLeaf) },
	},
	DeleteEnvoy: {
		func(w *world, s Step) {
			w.envoyOf(s).deleted = true
			w.deleteToken(w.envoyOf(s).token)
		},
		func(w *world, s Step) {
			w.envoyOf(s).deleted = false
			w.ensureToken(w.envoyOf(s).token)
		},
	},
	DeleteUsher: {
		func(w *world, _ Step) {
			w.usherTokenDeleted = true
			w.deleteToken(w.usherToken)
		},
		func(w *world, _ Step) {
			w.usherTokenDeleted = false
			w.ensureToken(w.usherToken)
		},
	},
	ChangeEntry: {func(w *world, s Step) {
		toggles := []*bool{&w.want.mark, &w.want.extra, &w.want.redirect, &w.want.router, &w.want.patient}
		toggle := toggles[s.Pick%len(toggles)]
		*toggle = !*toggle
		w.writeWanted()
	}, nil},
	ChangeInstance: {func(w *world, _ Step) {
		w.want.second = !w.want.second
		w.writeWanted()
	}, nil},
	ChangeMode: {func(w *world, _ Step) {
		w.want.mode = otherMode(w.want.mode)
		w.writeWanted()
	}, nil},
	ChangeFile: {func(w *world, _ Step) {
		w.want.innerMode = otherMode(w.want.innerMode)
		for _, u := range w.ushers {
			w.writeFile(u)
		}
	}, nil},
	InvalidEntry: {
		func(w *world, s Step) {
			*w.invalid(s) = true
			w.writeWanted()
		},
		func(w *world, s Step) {
			*w.invalid(s) = false
			w.writeWanted()
		},
	},
	InvalidFile: {(*world).breakFile, func(w *world, s Step) {
		w.usherOf(s).invalidFile = false
		w.writeFile(w.usherOf(s))
	}},
	RestoreSnapshot: {(*world).save, (*world).restore},
	FillDisk:        {(*world).fill, (*world).empty},
}

func (w *world) usherOf(s Step) *usher { return w.ushers[s.Target] }
func (w *world) envoyOf(s Step) *envoy { return w.envoys[s.Target] }

// takeServer chooses the server of a step, when all are there: so there is a quorum without it.
func (w *world) takeServer(s Step) *lab.Consul {
	w.waitServers()
	i := s.Target
	if i == Leader {
		i = w.leader()
		w.note("  the leader is server %d", i+1)
	}
	w.chosen[s], w.away[i] = i, true
	return w.servers[i]
}

func (w *world) takeAllServers(f func(*lab.Consul)) {
	w.waitServers()
	w.eachServer(func(i int) {
		w.away[i] = true
		f(w.servers[i])
	})
}

func (w *world) eachServer(f func(i int)) {
	for i := range w.servers {
		f(i)
	}
}

func (w *world) startServer(i int) {
	w.servers[i].Process = w.servers[i].Again(w.t)
	w.away[i] = false
}

func (w *world) continueServer(i int) {
	w.servers[i].Signal(w.t, syscall.SIGCONT)
	w.away[i] = false
}

// waitServers waits until all servers are healthy voters.
func (w *world) waitServers() {
	w.t.Helper()
	w.read("all of Consul's servers are healthy", func(c *api.Client, o *api.QueryOptions) error {
		health, err := c.Operator().AutopilotServerHealth(o)
		if err != nil {
			return err
		}
		voters := 0
		for _, s := range health.Servers {
			if s.Healthy && s.Voter {
				voters++
			}
		}
		if voters < Servers {
			return fmt.Errorf("%d of them are", voters)
		}
		return nil
	})
}

// leader is the index of the server that leads.
func (w *world) leader() (leader int) {
	w.t.Helper()
	w.read("Consul has a leader", func(c *api.Client, o *api.QueryOptions) error {
		address, err := c.Status().LeaderWithQueryOptions(o)
		if err != nil {
			return err
		}
		leader = slices.IndexFunc(w.servers, func(a *lab.Consul) bool { return strings.HasPrefix(address, a.Host.IP.String()+":") })
		if leader < 0 {
			return errors.New("none")
		}
		return nil
	})
	return leader
}

func (w *world) startUsher(s Step) {
	u := w.usherOf(s)
	keep, err := os.OpenFile(u.log+".before", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err == nil {
		_, err = keep.WriteString(end(u.log, 200))
		err = errors.Join(err, keep.Close())
	}
	if err != nil {
		w.note("  the log of %s before: %v", u.Name, err) // the disk may be full
	}
	u.Process = u.Again(w.t)
}

func onConsulLinks(f func(*lab.Link)) func(*world, Step) {
	return func(w *world, s Step) {
		for _, l := range w.usherOf(s).links {
			f(l)
		}
	}
}

func restoreConsulLinks(w *world, s Step) { onConsulLinks((*lab.Link).Restore)(w, s) }
func restoreXDSLink(w *world, s Step)     { w.envoyOf(s).link.Restore() }

// delay is how slow a link becomes, up to two seconds.
func delay(s Step) time.Duration {
	return 100*time.Millisecond + time.Duration(s.Pick%20)*100*time.Millisecond
}

// How long certificates live. Consul renews them when 60 to 90 percent of it are over. A short one survives what keeps an
// Envoy's configuration away, step after step.
const (
	longLeaf  = 72 * time.Hour
	shortLeaf = 5 * time.Minute
)

// rotate gives the mesh a new root, whose certificates live so long. Those of the root before stay valid, but not those of
// the root before that one: Consul signs a root with the last one only. So the root stays while an Envoy does not have it yet.
func (w *world) rotate(s Step, ttl time.Duration) {
	root := w.activeRoot()
	bits := root.PublicKey.(*ecdsa.PublicKey).Curve.Params().BitSize
	if err := w.allTrust(root); err != nil {
		w.note("  the root stays: %v", err)
	} else {
		bits = 256 + 384 - bits // another size makes it another root
	}
	w.note("  certificates of %v, keys of %d bits", ttl, bits)
	w.write(s.String(), func(c *api.Client, o *api.WriteOptions) error {
		_, err := c.Connect().CASetConfig(&api.CAConfig{Provider: "consul", Config: map[string]any{
			"PrivateKeyType": "ec", "PrivateKeyBits": bits, "LeafCertTTL": ttl.String(),
			"SkipValidate": true, // Consul otherwise wants an hour at least
		}}, o)
		return err
	})
}

// activeRoot is the root that signs now.
func (w *world) activeRoot() (root *x509.Certificate) {
	w.read("the mesh's root", func(c *api.Client, o *api.QueryOptions) error {
		roots, _, err := c.Connect().CARoots(o)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(roots.Roots, func(r *api.CARoot) bool { return r.Active })
		block, _ := pem.Decode([]byte(roots.Roots[i].RootCertPEM))
		root, err = x509.ParseCertificate(block.Bytes)
		return err
	})
	return root
}

// allTrust is nil if each gateway and each sidecar runs, and has the root.
func (w *world) allTrust(root *x509.Certificate) error {
	lines := strings.Split(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})), "\n")
	line := lines[len(lines)/2] // which JSON leaves as it is
	trusts := func(e *lab.Envoy, d *downtime) error {
		if d.isDown() {
			return fmt.Errorf("%s does not run", e.Name)
		}
		dump, err := e.Admin("/config_dump")
		if err == nil && !strings.Contains(dump, line) {
			err = fmt.Errorf("%s does not have it", e.Name)
		}
		return err
	}
	for _, e := range w.envoys {
		if err := trusts(e.Envoy, &e.downtime); err != nil {
			return err
		}
	}
	for _, x := range w.instances {
		if err := trusts(x.Envoy, &x.downtime); err != nil {
			return err
		}
	}
	return nil
}

func otherMode(mode string) string {
	if mode == "strict" {
		return "permissive"
	}
	return "strict"
}

// invalid is what a step makes invalid.
func (w *world) invalid(s Step) *bool {
	ways := []*bool{&w.want.invalidMode, &w.want.invalidHeader}
	return ways[s.Pick%len(ways)]
}

// breakFile replaces the config file by garbage or half of it, or removes it.
func (w *world) breakFile(s Step) {
	u := w.usherOf(s)
	u.invalidFile = true
	var err error
	switch whole := w.want.file(); s.Pick % 3 {
	case 0:
		err = os.WriteFile(u.ConfigFile, []byte("\x00garbage { ="), 0o644)
	case 1:
		err = os.WriteFile(u.ConfigFile, []byte(whole[:len(whole)/2]), 0o644)
	default:
		err = os.Remove(u.ConfigFile)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// save saves a snapshot of Consul.
func (w *world) save(Step) {
	w.savedWant = w.want
	w.read("save a snapshot", func(c *api.Client, o *api.QueryOptions) error {
		body, _, err := c.Snapshot().Save(o)
		if err != nil {
			return err
		}
		defer body.Close()
		w.saved, err = io.ReadAll(body)
		return err
	})
}

// restore restores it. What was not valid then and is now, or the other way round, is written as it is
// now, because the end of another step counts on it.
func (w *world) restore(Step) {
	w.waitServers()
	w.write("restore the snapshot", func(c *api.Client, o *api.WriteOptions) error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return c.Snapshot().Restore(o.WithContext(ctx), bytes.NewReader(w.saved))
	})
	w.written = map[string]api.ConfigEntry{}
	for _, e := range w.savedWant.entries() {
		w.written[e.GetKind()+"/"+e.GetName()] = e
	}
	w.registered[w.second().id] = w.savedWant.second
	now := w.want
	w.want = w.savedWant
	w.want.innerMode, w.want.invalidMode, w.want.invalidHeader = now.innerMode, now.invalidMode, now.invalidHeader
	w.writeWanted()
	w.restoreTokens()
	// Consul's own xDS misses a restore. Its streams begin again, so that the sidecars follow Consul.
	for _, x := range w.instances {
		x.link.Reset()
		x.link.Restore()
	}
}

// restoreTokens deletes and makes tokens, after a restore, as they should be.
func (w *world) restoreTokens() {
	set := func(k token, deleted bool) {
		if deleted {
			w.deleteToken(k)
		} else {
			w.ensureToken(k)
		}
	}
	set(w.usherToken, w.usherTokenDeleted)
	for _, e := range w.envoys {
		set(e.token, e.deleted)
	}
}

// fill leaves no room for the Ushers' logs and states.
func (w *world) fill(Step) {
	file, err := os.Create(w.filler())
	if err != nil {
		w.t.Fatal(err)
	}
	defer file.Close()
	zeros := make([]byte, 64<<10)
	for err == nil {
		_, err = file.Write(zeros)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		w.t.Fatalf("fill the disk: %v", err)
	}
}

func (w *world) empty(Step) {
	if err := os.Remove(w.filler()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) filler() string { return filepath.Join(w.disk, "filler") }

// run makes the events of a plan, one after the other, none before its time.
func (w *world) run(steps []Step) {
	begin := time.Now()
	for _, e := range Events(steps) {
		time.Sleep(time.Until(begin.Add(e.At))) // the plan's own pace
		if e.Lift {
			w.note("- end of %v", e.Step)
			actions[e.Step.Kind].lift(w, e.Step)
			w.excuseMore(e.Step, begin.Add(e.Step.At))
			continue
		}
		w.note("+ %v", e.Step)
		actions[e.Step.Kind].begin(w, e.Step)
	}
	w.note("all faults are over")
}
