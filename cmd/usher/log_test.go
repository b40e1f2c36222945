package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// queued returns a queue that runs until the test ends, and a log in front of it.
func queued(t *testing.T, to io.Writer, format string) (*logQueue, *slog.Logger) {
	t.Helper()
	q := newLogQueue(to, format, prometheus.NewRegistry())
	log, err := newLogger(q, format, "info")
	if err != nil {
		t.Fatal(err)
	}
	go q.run()
	t.Cleanup(func() {
		q.close(time.Minute)
		select {
		case <-q.done:
		default:
			t.Error("the queue did not end")
		}
	})
	return q, log
}

// records logs the same varied records on every call.
func records(h slog.Handler) {
	for i := range 100 {
		r := slog.NewRecord(time.Unix(int64(i), 0), slog.LevelInfo, "line", 0)
		r.AddAttrs(slog.Int("i", i), slog.String("text", "two\nlines"), slog.Group("g", slog.Bool("b", true)))
		for _, h := range []slog.Handler{h, h.WithAttrs([]slog.Attr{slog.String("with", "x y")}), h.WithGroup("group")} {
			_ = h.Handle(context.Background(), r)
		}
	}
}

func TestTheLogHasTheSameBytesInTheSameOrder(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		synctest.Test(t, func(t *testing.T) {
			var direct, through bytes.Buffer
			plain, err := newLogger(&direct, format, "info")
			if err != nil {
				t.Fatal(err)
			}
			records(plain.Handler())
			q, log := queued(t, &through, format)
			records(log.Handler())
			q.close(time.Second)
			if direct.String() != through.String() {
				t.Errorf("%s: wrote\n%s\nwant\n%s", format, &through, &direct)
			}
		})
	}
}

var missingLine = regexp.MustCompile(`log lines dropped.*lines"?[=:](\d+)`)

// TestALogThatIsNotReadStopsNothingAndSaysWhatIsMissing logs far more than the queue
// holds before it reads anything.
func TestALogThatIsNotReadStopsNothingAndSaysWhatIsMissing(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		synctest.Test(t, func(t *testing.T) {
			reader, writer := io.Pipe()
			q, log := queued(t, writer, format)
			q.limit = 64 << 10
			const total = 5000
			for i := range total {
				log.Info("line", "i", i)
			}
			synctest.Wait()
			dropped := int(testutil.ToFloat64(q.dropped))
			if dropped == 0 || dropped > total-100 {
				t.Errorf("%d of %d lines were dropped", dropped, total)
			}
			text := make(chan string)
			go func() {
				all, _ := io.ReadAll(reader)
				text <- string(all)
			}()
			synctest.Wait()
			log.Info("line", "i", total)
			q.close(time.Minute)
			writer.Close()
			lines := strings.Split(strings.TrimSpace(<-text), "\n")
			kept := total - dropped
			if len(lines) != kept+2 {
				t.Fatalf("%d lines were written, want %d, the one about those that are missing, and the last", len(lines), kept)
			}
			for i, line := range append(lines[:kept:kept], lines[kept+1]) {
				want := i
				if i == kept {
					want = total
				}
				if !regexp.MustCompile(fmt.Sprintf(`\bi"?[=:]%d\b`, want)).MatchString(line) {
					t.Fatalf("line %d is %s", i, line)
				}
			}
			if found := missingLine.FindStringSubmatch(lines[kept]); found == nil || found[1] != strconv.Itoa(dropped) {
				t.Errorf("instead of %d lines there is %s", dropped, lines[kept])
			}
		})
	}
}

// after is a writer that first returns its errors, and then writes.
type after struct {
	bytes.Buffer
	errors []error
	takes  int // bytes that each failing write takes
}

func (a *after) Write(p []byte) (int, error) {
	if len(a.errors) == 0 {
		return a.Buffer.Write(p)
	}
	err := a.errors[0]
	a.errors = a.errors[1:]
	n, _ := a.Buffer.Write(p[:a.takes])
	return n, err
}

func TestALogThatCannotBeWrittenLosesLinesAndSaysSoLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &after{errors: []error{syscall.EPIPE, syscall.EPIPE, syscall.ENOSPC}}
		q, log := queued(t, to, "text")
		for i := range 4 {
			log.Info("line", "i", i)
			synctest.Wait()
		}
		// Line 0 fails, and then the line about it fails twice.
		lines := strings.Split(strings.TrimSpace(to.String()), "\n")
		if len(lines) != 2 || !strings.HasSuffix(lines[0], " lines=3") || !strings.HasSuffix(lines[1], " i=3") {
			t.Errorf("wrote %q", lines)
		}
		if got := testutil.ToFloat64(q.dropped); got != 3 {
			t.Errorf("%v lines are counted as lost, want 3", got)
		}
	})
}

// A reader may share its end of a pipe with a process that has made it
// non-blocking.
func TestAFullPipeThatDoesNotBlockLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &after{errors: []error{syscall.EAGAIN, syscall.EAGAIN}, takes: 7}
		q, log := queued(t, to, "text")
		log.Info("a line that is written in three pieces")
		q.close(time.Second)
		if got := to.String(); !strings.HasSuffix(got, "level=INFO msg=\"a line that is written in three pieces\"\n") || !strings.HasPrefix(got, "time=") {
			t.Errorf("wrote %q", got)
		}
	})
}

func TestTheEndWaitsForTheLogNoLongerThanASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader, writer := io.Pipe()
		q, log := queued(t, writer, "text")
		log.Info("nothing reads this")
		begin := time.Now()
		q.close(logFlushTimeout)
		if took := time.Since(begin); took != time.Second {
			t.Errorf("close took %v, want a second", took)
		}
		reader.Close()
	})
}

func TestWhyUsherEndsIsInTheFormatOfTheLog(t *testing.T) {
	const text, json = "usher: ", `{"time":`
	for args, begin := range map[string]string{
		"--xds-addr 0.0.0.0:0 --log-format text":                           text,
		"--xds-addr 0.0.0.0:0 --log-format json":                           json,
		"--confg x --log-format json":                                      json,
		"x --log-format=json":                                              json,
		"-log-format json":                                                 json,
		"--drain-time soon --log-format=json":                              json,
		"--log-format json --confg x --log-format text":                    text,
		"--config --log-format=json --confg x":                             text,
		"--xds-addr 0.0.0.0:0 --webhook-arg -log-format --log-format json": json,
	} {
		line := errorLine(t, append([]string{"serve"}, strings.Fields(args)...))
		if !strings.HasPrefix(line, begin) || strings.Count(line, "\n") != 1 {
			t.Errorf("usher serve %s: %q, want %s", args, line, begin)
		}
	}
	if line := errorLine(t, []string{"version", "--log-format", "json"}); !strings.HasPrefix(line, text) {
		t.Errorf("a command without a log: %q", line)
	}
}

// errorLine returns the line with which usher ends.
func errorLine(t *testing.T, args []string) string {
	t.Helper()
	cmd, err := execute(t.Context(), rootCommand(), args)
	var out bytes.Buffer
	printError(&out, err, logsJSON(cmd, args))
	return out.String()
}
