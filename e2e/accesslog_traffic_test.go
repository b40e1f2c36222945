//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestConsulPresetIsConsuls sends the same requests through Consul's own gateway
// and through one on Usher with the preset. The log entries have the same keys,
// and the same values except those that belong to one connection.
func TestConsulPresetIsConsuls(t *testing.T) { lab.OnEachEnvoy(t, consulPresetIsConsuls) }

func consulPresetIsConsuls(t *testing.T, release string) {
	l := lab.Start(t, lab.ConsulNew, release, false)
	usher := lab.StartUsher(t, lab.UsherOptions{
		Host: l.Gateway, Consul: l.Consul, Config: `usher { access_log { sinks = [{ type = "stdout" }] format = "consul" } }`,
	})
	own := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: release, GRPCAddr: usher.GRPCAddr})
	other := l.AddHost(t, "gateway2", lab.Gateway2IP)
	consuls := lab.StartGateway(t, lab.GatewayOptions{Host: other, Consul: l.Consul, Envoy: release, ID: "consuls"})
	for _, h := range []*lab.Host{l.Gateway, other} {
		lab.WaitStatus(t, lab.Request{From: l.Client, To: h.Addr(8080)}, http.StatusOK)
	}
	for _, c := range []lab.Request{
		{Path: lab.NewPath() + "?a=1", Header: http.Header{"User-Agent": {"agent"}, "X-Forwarded-For": {"6.6.6.6"}}},
		{Path: lab.NewPath(), Host: "nobody.example.com"},
	} {
		var entries []lab.LogEntry
		for _, to := range []*lab.Envoy{consuls, own} {
			c.From, c.To = l.Client, to.Host.Addr(8080)
			c.MustDo(t)
			entries = append(entries, to.Log.WaitRequest(t, c.Path))
		}
		if a, b := slices.Sorted(maps.Keys(entries[0])), slices.Sorted(maps.Keys(entries[1])); !slices.Equal(a, b) {
			t.Errorf("%s has other keys: Consul's %v, Usher's %v", c.Path, a, b)
		}
		for key, want := range entries[0] {
			got := entries[1][key]
			switch key {
			case "start_time", "duration", "upstream_service_time", "upstream_local_address", "downstream_local_address", "downstream_remote_address", "request_id":
				if fmt.Sprintf("%T", got) != fmt.Sprintf("%T", want) {
					t.Errorf("%s: %s is %v, and %v with Consul", c.Path, key, got, want)
				}
			default:
				if got != want {
					t.Errorf("%s: %s is %v, and %v with Consul", c.Path, key, got, want)
				}
			}
		}
	}
}

// TestClientsCannotForgeLogLines sends thousands of requests whose headers,
// paths and TLVs contain bytes that could end a line or a quote. Each line is
// one log entry.
func TestClientsCannotForgeLogLines(t *testing.T) { lab.OnEachEnvoy(t, clientsCannotForgeLogLines) }

func clientsCannotForgeLogLines(t *testing.T, release string) {
	const requests = 3000
	dir := testprocess.NewDir(t)
	l := startFileLabOn(t, release, fmt.Sprintf(`usher {
  proxy_protocol {
    mode = "strict"
    tlvs = [{ type = "authority" }, { type = "0xE4", name = "tenant" }]
  }
  access_log {
    sinks = [
      { type = "file", path = "%[1]s/consul", format = "consul" },
      { type = "file", path = "%[1]s/ecs", format = "ecs" },
      { type = "file", path = "%[1]s/combined", format = "combined" },
    ]
  }
}`, dir))
	l.WaitMode(t, l.Network.Gateway, "strict")
	random := rand.New(rand.NewPCG(7, 7))
	answered := 0
	for range requests {
		h := lab.ProxyHeaderFor(lab.ClientIP)
		if err := h.SetTLVs([]proxyproto.TLV{{Type: 2, Value: []byte(hostileText(random, ""))}, {Type: 0xE4, Value: []byte(hostileText(random, ""))}}); err != nil {
			t.Fatal(err)
		}
		c := lab.Request{From: l.Balancer, To: l.Network.Gateway.Addr(8080), Proxy: h, Path: "/" + hostileText(random, " "), Header: http.Header{}}
		c.Header["User-Agent"] = []string{hostileText(random, "\r\n")}
		c.Header["Referer"] = []string{hostileText(random, "\r\n")}
		if c.StatusCode(t) != 0 {
			answered++
		}
	}
	if answered < requests/2 {
		t.Fatalf("%d of %d requests were answered", answered, requests)
	}
	last := lab.NewPath()
	lab.Request{From: l.Balancer, To: l.Network.Gateway.Addr(8080), Proxy: lab.ProxyHeaderFor(lab.ClientIP), Path: last}.MustDo(t).WantHello(t)
	for _, name := range []string{"consul", "ecs", "combined"} {
		path := filepath.Join(dir, name)
		testprocess.Eventually(t, name+" has the last request", testprocess.ChangeDeadline, func() error {
			if text := testprocess.ReadFile(t, path); !strings.Contains(text, last) {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		lines := 0
		for line := range strings.Lines(testprocess.ReadFile(t, path)) {
			lines++
			var entry map[string]any
			if name != "combined" && json.Unmarshal([]byte(line), &entry) != nil {
				t.Errorf("%s has a line that is no JSON: %q", name, line)
			}
			if name == "combined" && (strings.Count(line, `"`) != 6 || !strings.HasPrefix(line, lab.ClientIP) && !strings.HasPrefix(line, lab.BalancerIP)) {
				t.Errorf("%s has a line with other quotes: %q", name, line)
			}
		}
		t.Logf("%s: %d lines for %d requests, %d answered", name, lines, requests, answered)
		if lines < answered {
			t.Errorf("%s has %d lines for %d requests that were answered", name, lines, answered)
		}
	}
}

// hostileText is a text of bytes that some program interprets, without some.
func hostileText(random *rand.Rand, without string) string {
	const bytes = "\"\\'%{}[],:\n\r\t\x00\x01\x1b\x7f\x80\xff\xc3\xa9\xe2\x82 ab/?&="
	var b strings.Builder
	for range 1 + random.IntN(24) {
		if c := bytes[random.IntN(len(bytes))]; !strings.ContainsRune(without+"\r\n", rune(c)) || without == "" {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// TestAccessLogsChangeUnderLoad changes format and sink under load. No request
// fails, and each is in exactly one of the logs.
func TestAccessLogsChangeUnderLoad(t *testing.T) { lab.OnEachEnvoy(t, accessLogsChangeUnderLoad) }

func accessLogsChangeUnderLoad(t *testing.T, release string) {
	dir := testprocess.NewDir(t)
	settings := func(file, format string) string {
		return fmt.Sprintf(`usher { access_log { sinks = [{ type = "file", path = "%s/%s" }] format = %q } }`, dir, file, format)
	}
	l := startFileLabOn(t, release, settings("a", "consul"))
	lab.WaitStatus(t, l.call("/"), http.StatusOK)
	load := lab.StartLoad(t, l.call("/"))
	for i, next := range [][2]string{{"a", "ecs"}, {"b", "ecs"}, {"b", "consul"}, {"a", "consul"}} {
		load.WaitMore(t)
		l.Usher.WriteConfig(t, settings(next[0], next[1]))
		testprocess.Eventually(t, "usher reads its config file", testprocess.ChangeDeadline, func() error {
			if n := strings.Count(l.Usher.Output(t), `msg="config file read"`); n != i+1 {
				return fmt.Errorf("it has read %d changes, want %d", n, i+1)
			}
			return nil
		})
		load.WaitMore(t)
	}
	load.WantNoFailures(t)
	if text := testprocess.ReadFile(t, filepath.Join(dir, "b")); !strings.Contains(text, `"ecs"`) || !strings.Contains(text, `"upstream_cluster"`) {
		t.Error("a sink or a format has never been used")
	}
	testprocess.Eventually(t, "every request is logged once", testprocess.ChangeDeadline, func() error {
		logged := map[string]int{}
		for _, name := range []string{"a", "b"} {
			for _, entry := range lab.OpenAccessLog(name, filepath.Join(dir, name)).Entries(t) {
				flat := entry.Flatten()
				logged[flat.Text("path")+flat.Text("url.original")]++
			}
		}
		for i := range load.Paths.Load() {
			if n := logged[fmt.Sprint(lab.LoadPrefix, i+1)]; n != 1 {
				return fmt.Errorf("%s%d is logged %d times", lab.LoadPrefix, i+1, n)
			}
		}
		return nil
	})
}
