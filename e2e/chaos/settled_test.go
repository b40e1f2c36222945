//go:build e2e

package chaos

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// settleDeadline is how long everything may take to be as if nothing had happened. After a new root, Consul spreads new
// certificates over half a minute, and a client may wait a minute before it tries again.
const settleDeadline = 2 * time.Minute

// wantSettled waits until all is as if nothing had happened.
func (w *world) wantSettled() {
	w.wantAllServing()
	w.waitServers()
	for _, u := range w.ushers {
		testprocess.Eventually(w.t, u.Name+" has no problem", settleDeadline, func() error { return w.isCalm(u) })
	}
	testprocess.Eventually(w.t, "all Envoys are connected", settleDeadline, w.allConnected)
	w.withExtraListener(true)
	for _, e := range w.envoys {
		testprocess.Eventually(w.t, e.id+" has what Usher would send it", settleDeadline, func() error { return w.differs(e) })
		testprocess.Eventually(w.t, e.id+" has the instances that Consul has", settleDeadline, func() error { return w.wrongInstances(e) })
	}
	w.withExtraListener(false)
	w.note("settled")
}

// withExtraListener adds the listener that comes and goes, or removes it, and waits for all Envoys. While it drains, which takes
// ten minutes, an Envoy shows the routes of a listener that was removed: so Envoys are compared while they have it.
func (w *world) withExtraListener(want bool) {
	w.want.extra = want
	w.writeWanted()
	for _, e := range w.envoys {
		testprocess.Eventually(w.t, fmt.Sprintf("%s has port %d: %v", e.id, extraPort, want), settleDeadline, func() error {
			ports, err := e.ListenerPorts()
			if err == nil && slices.Contains(ports, extraPort) != want {
				err = fmt.Errorf("it has the ports %v", ports)
			}
			return err
		})
	}
}

// isCalm is nil if an Usher is ready and reports nothing.
func (w *world) isCalm(u *usher) error {
	ready, err := u.Admin("/readyz")
	if err != nil {
		return err
	}
	if ready != "ready\n" {
		return fmt.Errorf("/readyz: %s", ready)
	}
	for _, metric := range []string{"usher_held_back_listeners", "usher_xds_rejected", "usher_consul_watches_failing"} {
		if n, err := u.sum(metric); err != nil || n != 0 {
			return fmt.Errorf("%s is %v: %w", metric, n, err)
		}
	}
	return nil
}

// allConnected is nil if the Ushers together have all Envoys.
func (w *world) allConnected() error {
	var envoys float64
	for _, u := range w.ushers {
		n, err := u.sum("usher_gateway_envoys")
		if err != nil {
			return err
		}
		envoys += n
	}
	if envoys != Envoys {
		return fmt.Errorf("%v of %d", envoys, Envoys)
	}
	return nil
}

// sum adds up the series of a metric. None of them are 0.
func (u *usher) sum(metric string) (float64, error) {
	text, err := u.Admin("/metrics")
	if err != nil {
		return 0, err
	}
	var total float64
	for _, series := range regexp.MustCompile(`(?m)^`+metric+`(?:\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(text, -1) {
		value, err := strconv.ParseFloat(series[1], 64)
		if err != nil {
			return 0, err
		}
		total += value
	}
	return total, nil
}

// differs is nil if an Envoy runs what a fresh Usher makes of what Consul says now.
func (w *world) differs(e *envoy) error {
	out := testprocess.Run(w.t, testprocess.Command{
		Name: "usher diff", Path: testprocess.Usher(w.t), Host: e.Host,
		Args: []string{
			"diff", "--gateway", e.gateway, "--service-id", e.id, "--node-name", e.node, "--config", w.ushers[0].ConfigFile,
			"--consul-grpc-addr", "http://" + w.servers[0].Host.Addr(8502), "--envoy-admin", "http://127.0.0.1:19000",
		},
		Env: []string{"CONSUL_HTTP_ADDR=" + w.servers[0].HTTPAddr, "CONSUL_HTTP_TOKEN=" + w.usherToken.secret},
	}, "")
	if out.Code != 0 || out.Stdout != "" {
		return fmt.Errorf("usher diff: exit status %d: %s%s", out.Code, out.Stdout, out.Stderr)
	}
	return nil
}

// wrongInstances is nil if each cluster for a service has the instances that are registered, and no others.
func (w *world) wrongInstances(e *envoy) error {
	body, err := e.Admin("/clusters?format=json")
	if err != nil {
		return err
	}
	var answer struct {
		Clusters []struct {
			Name  string `json:"name"`
			Hosts []struct {
				Address struct {
					Socket struct {
						Address string `json:"address"`
						Port    int    `json:"port_value"`
					} `json:"socket_address"`
				} `json:"address"`
			} `json:"host_statuses"`
		} `json:"cluster_statuses"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		return err
	}
	services := map[string]bool{}
	for _, c := range answer.Clusters {
		service, _, ofMesh := strings.Cut(c.Name, ".default.")
		if !ofMesh {
			continue
		}
		services[service] = true
		var has []string
		for _, h := range c.Hosts {
			has = append(has, fmt.Sprint(h.Address.Socket.Address, ":", h.Address.Socket.Port))
		}
		slices.Sort(has)
		if want := w.registeredOf(service); !slices.Equal(has, want) {
			return fmt.Errorf("cluster %s has %v, want %v", c.Name, has, want)
		}
	}
	want := []string{"tcp", "web"}
	if w.want.redirect {
		want = []string{"tcp", "web-b"}
	}
	if got := slices.Sorted(maps.Keys(services)); !slices.Equal(got, want) {
		return fmt.Errorf("it has clusters for %v, want %v", got, want)
	}
	return nil
}

// registeredOf are the addresses of a service's sidecars in Consul.
func (w *world) registeredOf(service string) []string {
	var all []string
	w.read("instances of "+service, func(c *api.Client, o *api.QueryOptions) error {
		found, _, err := c.Health().Connect(service, "", false, o)
		all = nil
		for _, s := range found {
			all = append(all, fmt.Sprint(s.Service.Address, ":", s.Service.Port))
		}
		return err
	})
	slices.Sort(all)
	return all
}

// footprint is what an Usher uses.
type footprint struct {
	goroutines int
	heap       int // bytes that live after a garbage collection
}

// heapAlloc matches the line of a heap profile.
var heapAlloc = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)$`)

func (u *usher) footprint() (footprint, error) {
	n, err := u.sum("go_goroutines")
	if err != nil {
		return footprint{}, err
	}
	profile, err := u.Admin("/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return footprint{}, err
	}
	found := heapAlloc.FindStringSubmatch(profile)
	if found == nil {
		return footprint{}, fmt.Errorf("no HeapAlloc in the profile: %.200s", profile)
	}
	heap, err := strconv.Atoi(found[1])
	return footprint{int(n), heap}, err
}

// What an Usher may use more at the end than at the beginning. A goroutine more or less is a connection that
// closes later: an idle one to Consul, one of the admin port, a stream whose Envoy has another. The heap varies by what the last
// change has left in caches and in the lines of the log that Usher keeps.
const (
	moreGoroutines = 12
	moreHeap       = 8 << 20
)

// footprints are those of all Ushers. Which of them has which Envoy changes, so only their sum is comparable.
func (w *world) footprints() (all []footprint, sum footprint, err error) {
	for _, u := range w.ushers {
		f, err := u.footprint()
		if err != nil {
			return nil, footprint{}, err
		}
		all = append(all, f)
		sum.goroutines += f.goroutines
		sum.heap += f.heap
	}
	return all, sum, nil
}

// wantNoLeak waits until the Ushers use what they used before, when they were new.
func (w *world) wantNoLeak(before footprint) {
	testprocess.Eventually(w.t, "the Ushers use what they used before", settleDeadline, func() error {
		all, now, err := w.footprints()
		if err != nil {
			return err
		}
		if now.goroutines > before.goroutines+moreGoroutines || now.heap > before.heap+moreHeap {
			return fmt.Errorf("%+v, together %+v, before %+v", all, now, before)
		}
		w.note("memory: %+v, together %+v, before %+v", all, now, before)
		return nil
	})
}

// wantNoPanic wants no panic, and every process that should run to run.
func (w *world) wantNoPanic(t *testing.T) {
	for _, u := range w.ushers {
		if n, err := u.sum("usher_panics_total"); err != nil || n != 0 {
			t.Errorf("%s: usher_panics_total is %v: %v", u.Name, n, err)
		}
		t.Logf("%s: %d MiB resident", u.Name, lab.Memory(t, u.Pid())>>20)
	}
	for _, p := range w.processes() {
		if err := p.Alive(); err != nil {
			t.Error(err)
		}
	}
}

func (w *world) processes() []*testprocess.Process {
	var all []*testprocess.Process
	for _, a := range w.servers {
		all = append(all, a.Process)
	}
	for _, u := range w.ushers {
		all = append(all, u.Process)
	}
	for _, e := range w.envoys {
		all = append(all, e.Process)
	}
	for _, x := range w.instances {
		all = append(all, x.Process)
	}
	return all
}
