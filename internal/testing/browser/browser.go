//go:build e2e

package browser

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Browser is a running Chromium. The test's end stops it.
type Browser struct{ ctx context.Context }

// Start starts a Chromium.
func Start(t *testing.T) *Browser {
	t.Helper()
	dir := testprocess.NewDir(t)
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(testprocess.Debian(t, "chromium", "chromium")), chromedp.UserDataDir(dir),
		chromedp.NoSandbox, // it does not start as root with it
		chromedp.DisableGPU)
	ctx, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	return &Browser{ctx}
}

// View is how a page is looked at.
type View struct {
	Width, Height int
	Dark          bool // the user prefers dark colors
	NoScript      bool // scripts of the page do not run
}

// Tab is a tab with a page.
type Tab struct {
	ctx context.Context

	mu       sync.Mutex
	messages []string // what the page wrote to the console
	expected string   // is in messages that do not fail the test; empty: all do
}

// Open opens a page in a new tab, and waits until it is loaded. What the page writes to the console fails the test, as
// everything does there that its Content-Security-Policy forbids.
func (b *Browser) Open(t *testing.T, url string, v View) *Tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx)
	tab := &Tab{ctx: ctx}
	messages := chromedp.Console(ctx)
	var reading sync.WaitGroup
	reading.Go(func() {
		for message, err := range messages {
			if err != nil {
				return // the tab is closed
			}
			tab.mu.Lock()
			tab.messages = append(tab.messages, message.Text)
			tab.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		cancel()
		reading.Wait()
		for _, message := range tab.messages {
			if tab.expected == "" || !strings.Contains(message, tab.expected) {
				t.Errorf("%s wrote to the console: %s", url, message)
			}
		}
	})
	tab.Look(t, v)
	tab.Go(t, url)
	return tab
}

// Go opens another page in the tab, and waits until it is loaded.
func (tab *Tab) Go(t *testing.T, url string) {
	t.Helper()
	if err := chromedp.Do(tab.ctx, chromedp.Navigate(url)); err != nil {
		t.Fatalf("open %s: %v", url, err)
	}
}

// Expect says which messages on the console do not fail the test: those with the text.
func (tab *Tab) Expect(text string) { tab.expected = text }

// Look changes how the page is looked at.
func (tab *Tab) Look(t *testing.T, v View) {
	t.Helper()
	scheme := "light"
	if v.Dark {
		scheme = "dark"
	}
	still := &emulation.MediaFeature{Name: "prefers-reduced-motion", Value: "reduce"}
	media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, still}}
	script := emulation.SetScriptExecutionDisabledParams{Value: v.NoScript}
	err := chromedp.Do(tab.ctx,
		chromedp.EmulateViewport(int64(v.Width), int64(v.Height)),
		call(emulation.SetEmulatedMedia, media), call(emulation.SetScriptExecutionDisabled, script))
	if err != nil {
		t.Fatal(err)
	}
}

// call is a command of Chromium's that returns nothing.
func call[P any](command cdp.Command[P, cdp.Empty], params P) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, command, params)
		return chromedp.Void{}, err
	}
}

// Eval evaluates an expression, waits for it if it is a promise, and stores its value in result, if that is not nil.
func (tab *Tab) Eval(t *testing.T, expression string, result any) {
	t.Helper()
	if err := tab.eval(expression, result); err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
}

func (tab *Tab) eval(expression string, result any) error {
	ctx, cancel := context.WithTimeout(tab.ctx, testprocess.StartDeadline)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[[]byte](expression, chromedp.EvalAwaitPromise))
	if err != nil || result == nil {
		return err
	}
	return json.Unmarshal(value, result)
}

// WaitFor waits until an expression is true.
func (tab *Tab) WaitFor(t *testing.T, expression string) {
	t.Helper()
	testprocess.Eventually(t, expression, testprocess.ChangeDeadline, func() error {
		var is bool
		if err := tab.eval("Boolean("+expression+")", &is); err != nil {
			return testprocess.Permanent(err)
		}
		if !is {
			return errors.New("it is false")
		}
		return nil
	})
}

// Press presses keys, one after the other; package kb of chromedp has those that are not characters.
func (tab *Tab) Press(t *testing.T, keys string) {
	t.Helper()
	if err := chromedp.Do(tab.ctx, chromedp.KeyEvent(keys)); err != nil {
		t.Fatalf("press %q: %v", keys, err)
	}
}

// Screenshot writes a picture of the whole page into the directory USHER_SCREENSHOTS, if that is set.
func (tab *Tab) Screenshot(t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv("USHER_SCREENSHOTS")
	if dir == "" {
		return
	}
	const png = 100
	picture, err := chromedp.Run(tab.ctx, chromedp.FullScreenshot(png))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}

// Finding is something that axe-core says about a page.
type Finding struct {
	ID, Impact, Help string
	Nodes            []struct{ HTML, FailureSummary string }
}

// String returns what is wrong, and where.
func (f Finding) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s (%s): %s", f.ID, f.Impact, f.Help)
	for _, n := range f.Nodes {
		fmt.Fprintf(&text, "\n  %s\n    %s", n.HTML, n.FailureSummary)
	}
	return text.String()
}

// Findings returns what axe-core finds in the page as it is now. See https://github.com/dequelabs/axe-core.
func (tab *Tab) Findings(t *testing.T) []Finding {
	t.Helper()
	var isThere bool
	if tab.Eval(t, `typeof axe === "object"`, &isThere); !isThere {
		tab.Eval(t, testprocess.ReadFile(t, testprocess.Tool(t, testprocess.AxeCore, "package", "axe.min.js"))+";0", nil)
	}
	var findings []Finding
	tab.Eval(t, `axe.run({resultTypes: ["violations"]}).then(r => r.violations)`, &findings)
	return findings
}
