package configdir

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/logbuffer"
)

// watched is a directory that a source watches, and the snapshots that the source puts.
type watched struct {
	t      *testing.T
	dir    string
	source *Source
	put    chan *gateway.Snapshot
	log    *logbuffer.Buffer // what is reported, and what is logged
}

// watchDir loads dir and watches the gateway gw until the test ends. The tests run in bubbles, where time passes only
// while everything waits: they neither take long nor depend on the machine's speed.
func watchDir(t *testing.T, dir string) *watched {
	t.Helper()
	f := &watched{t: t, dir: dir, put: make(chan *gateway.Snapshot, 100), log: &logbuffer.Buffer{}}
	f.source = NewSource(dir, Options{
		Logger: slog.New(slog.NewTextHandler(f.log, nil)),
		Report: func(problems []problem.Problem) { fmt.Fprintf(f.log, "reported %d: %v\n", len(problems), problems) },
	})
	if err := f.source.Load(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var tasks sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		tasks.Wait()
	})
	tasks.Go(func() {
		if err := f.source.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	tasks.Go(func() {
		if err := f.source.Watch(ctx, gateway.ID{Name: "gw"}, func(s *gateway.Snapshot) { f.put <- s }); err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	return f
}

// until returns the first snapshot that is as wanted.
func (f *watched) until(what string, wanted func(*gateway.Snapshot) bool) *gateway.Snapshot {
	f.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case s := <-f.put:
			if wanted(s) {
				return s
			}
		case <-limit:
			f.t.Fatalf("no snapshot with %s came", what)
		}
	}
}

// write puts a file at name at once, as careful writers do.
func (f *watched) write(name, text string) {
	f.t.Helper()
	put(f.t, filepath.Join(f.dir, ".new"), text)
	must(f.t, os.Rename(filepath.Join(f.dir, ".new"), filepath.Join(f.dir, name)))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listening wants listeners on exactly these ports, and no problem.
func listening(ports ...int) (string, func(*gateway.Snapshot) bool) {
	return fmt.Sprintf("listeners on %v", ports), func(s *gateway.Snapshot) bool {
		return len(s.Problems) == 0 && cmp.Equal(portsOf(s), ports)
	}
}

func portsOf(s *gateway.Snapshot) []int {
	var ports []int
	for _, row := range s.Services {
		ports = append(ports, row.Port)
	}
	return ports
}

func hasProblems(s *gateway.Snapshot) bool { return len(s.Problems) > 0 }

// gw is the entry of a gateway that listens on the ports.
func gw(ports ...int) string {
	text := "kind = \"ingress-gateway\"\nname = \"gw\"\n"
	for _, port := range ports {
		text += fmt.Sprintf("listeners { port = %d services { name = \"static-server\" } }\n", port)
	}
	return text
}

func TestChangeOfAFileArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := watchDir(t, write(t, tree{"gw.hcl": gw(80), "web.hcl": staticServer}))
		f.until(listening(80))
		start := time.Now()
		f.write("gw.hcl", gw(81))
		f.until(listening(81))
		t.Logf("written to put: %v", time.Since(start))
		put(t, filepath.Join(f.dir, "gw.hcl"), gw(82, 83)) // in place
		f.until(listening(82, 83))
		f.write("more.hcl", `kind = "proxy-defaults" name = "global" access_logs { enabled = true }`)
		f.until("access logs", func(s *gateway.Snapshot) bool { return s.Instances[0].AccessLogs.Enabled })
		must(t, os.Remove(filepath.Join(f.dir, "more.hcl")))
		f.until("no access logs", func(s *gateway.Snapshot) bool { return !s.Instances[0].AccessLogs.Enabled })
		must(t, os.Remove(filepath.Join(f.dir, "gw.hcl")))
		gone := f.until("no listeners", func(s *gateway.Snapshot) bool { return s.Entry == nil })
		if len(gone.Instances) != 1 {
			t.Errorf("a gateway whose entry is deleted has %d instances; its Envoy has to learn it", len(gone.Instances))
		}
		if got := f.source.Gateways(); len(got) != 0 {
			t.Errorf("gateways are %v", got)
		}
	})
}

func TestDirectoryIsAwayForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "config")
		must(t, os.Rename(write(t, tree{"gw.hcl": gw(81), "web.hcl": staticServer}), dir))
		f := watchDir(t, dir)
		f.until(listening(81))
		must(t, os.Rename(dir, dir+".away"))
		away := f.until("a problem", hasProblems)
		want := dir + ": cannot be read: no such file or directory; correct it, or remove it"
		if got := away.Problems[0].String(); got != want || !cmp.Equal(portsOf(away), []int{81}) {
			t.Errorf("problem %q, ports %v", got, portsOf(away))
		}
		put(t, filepath.Join(dir+".away", "gw.hcl"), gw(82))
		must(t, os.Rename(dir+".away", dir))
		f.until(listening(82))
		f.write("gw.hcl", gw(83))
		f.until(listening(83))
	})
}

func TestBadChangeKeepsTheLastValidContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := watchDir(t, write(t, tree{"gw.hcl": gw(80), "web.hcl": staticServer}))
		good := f.until(listening(80))
		for _, tc := range []struct{ text, want string }{
			{"", "gw.hcl:1: the file is empty; write an entry, or remove it"},
			{gw(81)[:28], `gw.hcl:2: this is not HCL: key 'nam' expected start of object ('{') or assignment ('='); correct it`},
			{gw(80, 80), "gw.hcl:4: listeners[1].port: port 80 is already given at DIR/gw.hcl:3; give every listener another port"},
		} {
			f.write("gw.hcl", tc.text)
			want := "DIR/" + tc.want
			bad := f.until(want, func(s *gateway.Snapshot) bool {
				return len(s.Problems) == 1 && strings.ReplaceAll(s.Problems[0].String(), f.dir, "DIR") == want
			})
			if bad.Entry != good.Entry || !cmp.Equal(portsOf(bad), []int{80}) {
				t.Errorf("%s: the entry changed", want)
			}
		}
		if err := f.source.Ready(); err != nil {
			t.Errorf("Ready returns %v, though there is a last valid content", err)
		}
		f.write("gw.hcl", gw(81))
		f.until(listening(81))
		for report, want := range map[string]int{"reported 1:": 3, "reported 0:": 1} {
			if got := strings.Count(f.log.String(), report); got != want {
				t.Errorf("%d times %q, want %d:\n%s", got, report, want, f.log)
			}
		}
	})
}

func TestFileBeingWrittenIsNoProblem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := watchDir(t, write(t, tree{"gw.hcl": gw(80), "web.hcl": staticServer}))
		f.until(listening(80))
		for i := range 200 {
			put(t, filepath.Join(f.dir, "gw.hcl"), gw(81+i))
		}
		f.until(listening(280))
		if log := f.log.String(); strings.Contains(log, "reported") {
			t.Errorf("a file that is being written is a problem:\n%s", log)
		}
	})
}

func TestBadSettingsInvalidateNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defaults := func(mode string) string {
			return "kind = \"proxy-defaults\"\nname = \"global\"\nconfig { usher { proxy_protocol { mode = \"" + mode + "\" } } }"
		}
		f := watchDir(t, write(t, tree{"gw.hcl": gw(80), "web.hcl": staticServer, "proxy.hcl": defaults("strict")}))
		f.until(listening(80))
		f.write("proxy.hcl", defaults("on"))
		bad := f.until("a problem", hasProblems)
		want := f.dir + `/proxy.hcl:3: usher.proxy_protocol.mode: "on" is not allowed; use "auto", "off", "permissive" or "strict"`
		if got := bad.Problems[0].String(); got != want {
			t.Errorf("problem %q, want %q", got, want)
		}
		f.write("gw.hcl", gw(81))
		moved := f.until("port 81", func(s *gateway.Snapshot) bool { return cmp.Equal(portsOf(s), []int{81}) })
		if s, known := moved.ListenerSettings(moved.Instances[0], 0); !known || s.ProxyProtocol.Mode != settings.Strict {
			t.Errorf("mode %q, known %v; want the last valid one, strict", s.ProxyProtocol.Mode, known)
		}
		f.write("proxy.hcl", defaults("permissive"))
		f.until("mode permissive", func(s *gateway.Snapshot) bool {
			return s.ProxyDefaults.Settings.ProxyProtocol.Mode == settings.Permissive && len(s.Problems) == 0
		})
	})
}

func TestUnchangedPartsKeepTheirPointers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := watchDir(t, write(t, tree{
			"gw.hcl":  gw(80),
			"web.hcl": staticServer,
			"own.hcl": `service { kind = "ingress-gateway" name = "gw" address = "10.0.0.1" }`,
		}))
		before := f.until(listening(80))
		f.write("web.hcl", strings.Replace(staticServer, "10.1.0.7", "10.1.0.8", 1))
		const target = "static-server.default.default.dc1"
		after := f.until("the new address", func(s *gateway.Snapshot) bool {
			return s.Endpoints.Get(target).Endpoints[0].Address == "10.1.0.8"
		})
		web := gateway.ServiceName{Name: "static-server"}
		if before.Entry != after.Entry || before.Chains[web] != after.Chains[web] || before.Instances[0] != after.Instances[0] {
			t.Error("a part that did not change has another pointer")
		}
		if before.Endpoints.Get(target).Endpoints[0].Address != "10.1.0.7" {
			t.Error("a snapshot was changed after it was put")
		}
	})
}

func TestChangeWithoutEffectPutsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := watchDir(t, write(t, tree{"gw.hcl": gw(80), "web.hcl": staticServer}))
		f.until(listening(80))
		f.write("gw.hcl", "# a comment\n"+gw(80))
		f.write("README.md", "notes")
		f.write("other.hcl", `kind = "ingress-gateway" name = "other"`)
		for len(f.source.Gateways()) == 1 {
			<-f.source.current().next
		}
		f.write("gw.hcl", gw(81))
		for {
			s := <-f.put
			if ports := portsOf(s); cmp.Equal(ports, []int{81}) {
				return
			}
			t.Errorf("an equal snapshot was put: %+v", s)
		}
	})
}

func TestWatchBeforeTheFirstReadWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := write(t, tree{"gw.hcl": gw(80), "web.hcl": staticServer})
		s := NewSource(dir, Options{Datacenter: "dc7"})
		if err := s.Ready(); err == nil {
			t.Error("ready before anything was read")
		}
		ctx, cancel := context.WithCancel(t.Context())
		put, ended := make(chan *gateway.Snapshot, 1), make(chan error, 1)
		go func() { ended <- s.Watch(ctx, gateway.ID{Name: "gw"}, func(s *gateway.Snapshot) { put <- s }) }()
		must(t, s.Load())
		if got := <-put; got.Datacenter != "dc7" || len(got.Services) != 1 {
			t.Errorf("got %+v", got)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
}

func TestReloadReadsTheDirectoryAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := watchDir(t, write(t, tree{"gw.hcl": gw(81), "web.hcl": staticServer}))
		f.until(listening(81))
		synctest.Wait()
		start := time.Now()
		f.write("gw.hcl", gw(82))
		f.source.Reload()
		f.until(listening(82))
		if took := time.Since(start); took > filewatch.Settle {
			t.Errorf("a change is read %v after Reload, want at once", took)
		}
	})
}

func TestNamesAreThoseOfTheGoodDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		put(t, filepath.Join(dir, "gw.hcl"), gw(80))
		put(t, filepath.Join(dir, "web.hcl"), staticServer)
		f := watchDir(t, dir)
		var got []string
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.source.WatchNames(ctx, func(names []string) { got = names }) }()
		want := func(names ...string) {
			t.Helper()
			time.Sleep(20 * time.Second)
			synctest.Wait()
			if !cmp.Equal(got, names) {
				t.Errorf("got %#v, want %#v", got, names)
			}
		}
		want("gw")
		f.write("other.hcl", strings.Replace(gw(81), "gw", "another", 1))
		want("another", "gw")
		f.write("other.hcl", `kind = "nonsense"`)
		want() // not known
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
