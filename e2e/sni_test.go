//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// textWithName is a line of the format that wantServerName asks for.
var textWithName = regexp.MustCompile(`^text path=(\S+) sni=[^\s"\\[:cntrl:]]+ end( rejected: [ -~]+)?\n$`)

// wantServerName has a format ask for the server name, for which Envoy then looks
// on a listener with TLS. Names with bytes that would end a line or a quote do
// neither in a text, and no line in JSON is broken by them.
func (l *logLab) wantServerName(t *testing.T) {
	t.Helper()
	const requests = 500
	before := len(testprocess.ReadFile(t, l.Envoy.Log.Stdout))
	l.change(t, `format = { text = "text path=%REQ(:PATH)% sni=%REQUESTED_SERVER_NAME% end" }`)
	ask := func(name string) (path string, answered bool) {
		c := l.request(t, httpsPort, "")
		c.TLS = l.trust.Clone()
		c.TLS.ServerName = name
		return c.Path, c.StatusCode(t) != 0
	}
	testprocess.Eventually(t, "the server name is logged", testprocess.ChangeDeadline, func() error {
		path, _ := ask("shop.example")
		if want := fmt.Sprintf("text path=%s sni=shop.example end\n", path); !strings.Contains(testprocess.ReadFile(t, l.Envoy.Log.Stdout), want) {
			return fmt.Errorf("there is no line %q", want)
		}
		return nil
	})
	random := rand.New(rand.NewPCG(7, 7))
	asked := map[string]bool{}
	for range requests {
		if path, answered := ask(hostileText(random, "")); answered { // Envoy refuses some names
			asked[path] = true
		}
	}
	if len(asked) < requests/2 {
		t.Errorf("%d of %d requests were answered", len(asked), requests)
	}
	last, _ := ask("shop.example")
	l.file("ecs").WaitFlat(t, map[string]string{"url.original": last, "tls.client.server_name": "shop.example"})
	logged := map[string]int{}
	for line := range strings.Lines(testprocess.ReadFile(t, filepath.Join(l.Dir, "ecs"))) {
		var entry lab.LogEntry
		if json.Unmarshal([]byte(line), &entry) != nil {
			t.Errorf("a line is no JSON: %q", line)
		}
		logged[entry.Flatten().Text("url.original")]++
	}
	for line := range strings.Lines(testprocess.ReadFile(t, l.Envoy.Log.Stdout)[before:]) {
		match := textWithName.FindStringSubmatch(line)
		switch {
		case match != nil:
			logged[match[1]]++
		case !json.Valid([]byte(line)): // as lines before the format was changed are
			t.Errorf("a server name writes into the line %q", line)
		}
	}
	for path := range asked {
		if logged[path] != 2 {
			t.Errorf("%s is logged %d times in two sinks", path, logged[path])
		}
	}
}
