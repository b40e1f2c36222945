//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The ports of the collectors, one for each protocol.
const (
	otlpPort = 4317
	alsPort  = 9000
)

// collectorLab is a gateway that sends its entries to two collectors.
type collectorLab struct {
	*fileLab
	OTLP *lab.Collector
	ALS  *lab.Collector // of Envoy's own protocol
}

func startCollectorLab(t *testing.T, envoy, settings string) *collectorLab {
	t.Helper()
	return &collectorLab{fileLab: startFileLabOn(t, envoy, settings), OTLP: &lab.Collector{}, ALS: &lab.Collector{}}
}

// serve has both collectors serve until stop.
func (l *collectorLab) serve(t *testing.T, options ...grpc.ServerOption) (stop func()) {
	t.Helper()
	stopOTLP := l.OTLP.Serve(t, l.Control, l.Control.Addr(otlpPort), options...)
	stopALS := l.ALS.Serve(t, l.Control, l.Control.Addr(alsPort), options...)
	return func() {
		stopOTLP()
		stopALS()
	}
}

// request is one of the client's to the gateway.
func (l *collectorLab) request(path string) lab.Request {
	return lab.Request{From: l.Client, To: l.Network.Gateway.Addr(8080), Path: path}
}

// trust is what a gateway asks of its collectors, and how it comes out.
type trust struct {
	ca, sni string
	refused string // the statistic that counts it; "" where they are trusted
}

// settings send entries to the collectors, and to a file by which a test knows
// the requests that were served with them.
func (s trust) settings(file string) string {
	tls := fmt.Sprintf("{ ca = %q, sni = %q }", s.ca, s.sni)
	if s.sni == "" {
		tls = fmt.Sprintf("{ ca = %q }", s.ca)
	}
	return fmt.Sprintf(`usher { access_log { sinks = [
  { type = "file", path = %[1]q },
  { type = "otlp", address = "%[2]s:%[3]d", tls = %[5]s },
  { type = "grpc", address = "%[2]s:%[4]d", tls = %[5]s },
] } }`, file, lab.ControlIP, otlpPort, alsPort, tls)
}

// TestCollectorIsAuthenticated sends log entries to collectors with
// certificates. A collector gets entries only if its certificate has the
// configured name or address and the right authority. Requests are answered in
// any case, and corrected settings apply.
func TestCollectorIsAuthenticated(t *testing.T) {
	const name = "collector.example.com"
	own, other := lab.NewCertificateAuthority(t, "own"), lab.NewCertificateAuthority(t, "other")
	right := trust{ca: own.PEM(), sni: name}
	steps := []trust{
		right,
		{ca: other.PEM(), sni: name, refused: "ssl.fail_verify_error"},
		right,
		{ca: own.PEM(), sni: "other.example.com", refused: "ssl.fail_verify_san"},
		{ca: own.PEM()},
	}
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		dir := testprocess.NewDir(t)
		l := startCollectorLab(t, envoy, right.settings(filepath.Join(dir, "first")))
		cert, key := own.Issue(t, testprocess.NewDir(t), name, l.Control.IP)
		secure, err := credentials.NewServerTLSFromFile(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		l.serve(t, grpc.Creds(secure))
		lab.WaitStatus(t, l.request("/"), http.StatusOK)
		var refused []*lab.AccessLog
		for i, s := range steps {
			file := lab.OpenAccessLog("file", lab.WriteFile(t, dir, fmt.Sprint(i), ""))
			l.Usher.WriteConfig(t, s.settings(file.Stdout))
			path := l.waitServed(t, file)
			if s.refused != "" {
				l.waitRefused(t, s.refused)
				refused = append(refused, file)
				continue
			}
			l.OTLP.WaitRecord(t, map[string]string{"path": path})
			l.ALS.WaitRequest(t, path, lab.ClientIP)
		}
		for _, file := range refused {
			l.wantNowhere(t, file)
		}
	})
}

// waitServed waits until a request is in the file, and gives its path.
func (l *collectorLab) waitServed(t *testing.T, file *lab.AccessLog) string {
	t.Helper()
	var path string
	testprocess.Eventually(t, "requests are logged in "+file.Stdout, testprocess.ChangeDeadline, func() error {
		l.request(lab.NewPath()).MustDo(t).WantHello(t)
		entries := file.Entries(t)
		if len(entries) == 0 {
			return errors.New("there is none")
		}
		path = entries[len(entries)-1].Text("path")
		return nil
	})
	return path
}

// waitRefused waits until Envoy has refused both collectors, for a reason that a
// statistic counts. Requests are answered meanwhile.
func (l *collectorLab) waitRefused(t *testing.T, stat string) {
	t.Helper()
	for _, port := range []int{otlpPort, alsPort} {
		testprocess.Eventually(t, fmt.Sprintf("Envoy refuses the collector at %d: %s", port, stat), testprocess.ChangeDeadline, func() error {
			l.request(lab.NewPath()).MustDo(t).WantHello(t)
			if l.clusterStat(t, port, stat) == 0 {
				return errors.New("it is 0")
			}
			return nil
		})
	}
}

// wantNowhere wants no collector to have a request that is in the file.
func (l *collectorLab) wantNowhere(t *testing.T, file *lab.AccessLog) {
	t.Helper()
	for _, c := range []*lab.Collector{l.OTLP, l.ALS} {
		paths := c.Paths()
		for _, entry := range file.Entries(t) {
			if path := entry.Text("path"); slices.Contains(paths, path) {
				t.Errorf("a collector that is not who it should be has the entry of %s", path)
			}
		}
	}
}

// TestCollectorsComeAndGo starts, kills and restarts collectors under load. No
// request fails, log entries arrive as soon as a collector runs, and Envoy
// counts lost ones as the docs say.
func TestCollectorsComeAndGo(t *testing.T) {
	settings := fmt.Sprintf(`usher { access_log { sinks = [
  { type = "otlp", address = "%[1]s:%[2]d" },
  { type = "grpc", address = "%[1]s:%[3]d" },
] } }`, lab.ControlIP, otlpPort, alsPort)
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := startCollectorLab(t, envoy, settings)
		lab.WaitStatus(t, l.request("/"), http.StatusOK)
		load := lab.StartLoad(t, l.request("/"))
		l.waitLosses(t, load)
		stop := l.serve(t)
		l.waitNew(t, load)
		stop()
		l.waitLosses(t, load)
		l.serve(t)
		l.waitNew(t, load)
		load.WantNoFailures(t)
		l.waitCounted(t)
	})
}

// The statistics of entries. ALS's has those that are lost as well.
const (
	otlpWritten = "access_logs.open_telemetry_access_log.logs_written"
	otlpDropped = "access_logs.open_telemetry_access_log.logs_dropped"
	alsWritten  = "access_logs.grpc_access_log.logs_written"
)

// waitLosses waits until more entries of the load are lost to both collectors.
func (l *collectorLab) waitLosses(t *testing.T, load *lab.Load) {
	t.Helper()
	losses := func() (otlp, als int) {
		return l.Gateway.Stat(t, otlpDropped), l.clusterStat(t, alsPort, "upstream_cx_connect_fail")
	}
	otlp, als := losses()
	load.WaitMore(t)
	testprocess.Eventually(t, "Envoy counts losses", testprocess.ChangeDeadline, func() error {
		nowOTLP, nowALS := losses()
		if nowOTLP == otlp || nowALS == als {
			return fmt.Errorf("%d more entries, %d more connections", nowOTLP-otlp, nowALS-als)
		}
		return nil
	})
}

// waitNew waits until both collectors have an entry of a request that the load
// makes from now on.
func (l *collectorLab) waitNew(t *testing.T, load *lab.Load) {
	t.Helper()
	now := load.Paths.Load()
	load.WaitMore(t)
	for name, c := range map[string]*lab.Collector{"OTLP": l.OTLP, "ALS": l.ALS} {
		testprocess.Eventually(t, name+"'s collector has new entries", testprocess.ChangeDeadline, func() error {
			paths := c.Paths()
			for _, path := range paths {
				var n int64
				if _, err := fmt.Sscanf(path, lab.LoadPrefix+"%d", &n); err == nil && n > now {
					return nil
				}
			}
			return fmt.Errorf("not among %d", len(paths))
		})
	}
}

// waitCounted waits until every entry counts as written or as dropped: nothing is
// lost in silence on the way to OpenTelemetry's collector, and what is written
// has arrived.
func (l *collectorLab) waitCounted(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, "every entry is counted", testprocess.ChangeDeadline, func() error {
		written, dropped, all := l.Gateway.Stat(t, otlpWritten), l.Gateway.Stat(t, otlpDropped), l.Gateway.Stat(t, alsWritten)
		if got := len(l.OTLP.Paths()); written+dropped != all || got < written {
			return fmt.Errorf("%d are written, %d dropped, of %d; the collector has %d", written, dropped, all, got)
		}
		t.Logf("%d entries: %d written, %d dropped", all, written, dropped)
		return nil
	})
}

// clusterStat is the value of a counter of the cluster that leads to the
// collector at a port, whatever it has to prove.
func (l *collectorLab) clusterStat(t *testing.T, port int, name string) (sum int) {
	t.Helper()
	cluster := fmt.Sprintf("cluster.usher-collector_%s_%d", strings.ReplaceAll(lab.ControlIP, ".", "_"), port)
	body, err := l.Gateway.Admin("/stats?usedonly&filter=^" + cluster)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		stat, value, _ := strings.Cut(line, ": ")
		if !strings.HasSuffix(stat, "."+name) {
			continue
		}
		var n int
		if _, err := fmt.Sscan(value, &n); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		sum += n
	}
	return sum
}
