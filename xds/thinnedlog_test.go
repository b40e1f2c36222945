package xds

import (
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestManyFailingCallersHaveFewLines has a thousand callers at once, of which each has to have a line in the end.
func TestManyFailingCallersHaveFewLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines lineBuffer
		h := NewHandshakes(handshakeLog(&lines), nil)
		for i := range 2 * maxSubjects {
			h.Failed("xds", &net.TCPAddr{IP: net.IPv4(10, 0, byte(i>>8), byte(i)), Port: 4000}, errors.New("x"))
		}
		if n := strings.Count(lines.String(), "\n"); n != rateBurst*maxThinnedLines {
			t.Errorf("%d lines at once, want %d", n, rateBurst*maxThinnedLines)
		}
		time.Sleep(30 * thinnedLogTime)
		synctest.Wait()
		if n := strings.Count(lines.String(), "\n"); n != maxSubjects {
			t.Errorf("%d lines in the end, want %d", n, maxSubjects)
		}
		if n := len(h.lines.subjects); n != 0 {
			t.Errorf("%d callers are remembered for ever", n)
		}
	})
}

func TestNoLineFollowsAfterStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines lineBuffer
		h := NewHandshakes(handshakeLog(&lines), nil)
		caller := &net.UnixAddr{Net: "unix"}
		h.Failed("xds", caller, errors.New("x"))
		h.Failed("xds", caller, errors.New("x"))
		h.Stop()
		h.Failed("xds", caller, errors.New("x"))
		time.Sleep(2 * thinnedLogTime)
		synctest.Wait()
		if got := lines.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `address="unix socket"`) {
			t.Errorf("the log has %q, want one line about a unix socket", got)
		}
	})
}

// A line may be slow to write: callers do not wait for that of another.
func TestCallersDoNotWaitForALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newThinnedLog[int]()
		release := make(chan struct{})
		go l.add(1, func(int) { <-release })
		synctest.Wait()
		second := 0
		l.add(2, func(count int) { second = count })
		close(release)
		if second != 1 {
			t.Error("the second has no line")
		}
		l.stop()
	})
}
