package statedir

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/messages"
)

// TestMessages provokes every error of the package.
func TestMessages(t *testing.T) {
	dir := t.TempDir()
	var lines []string
	add := func(err error) {
		t.Helper()
		if err == nil {
			t.Fatal("no error")
		}
		text := strings.ReplaceAll(err.Error(), dir, "DIR")
		lines = append(lines, regexp.MustCompile(`bad-[0-9TZ.]+`).ReplaceAllString(text, "bad-TIME"))
	}
	put(t, filepath.Join(dir, "file"), "", 0o600)
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o770), os.MkdirAll(filepath.Join(dir, "odd", lockName), 0o700)); err != nil {
		t.Fatal(err)
	}
	for path, key := range map[string]string{"file": "", "open": "", "state": "short"} {
		_, err := Open(filepath.Join(dir, path), []byte(key))
		add(err)
	}
	_, err := open1(t, filepath.Join(dir, "odd"), nil).Names()
	add(err)
	d := open1(t, filepath.Join(dir, "state"), nil)
	_, err = Open(d.path, nil)
	add(err)
	add(d.Write("a/b", nil))
	add(d.Write("edge", make([]byte, maxSize/2+1)))
	for _, text := range []string{"", `{"format":"usher-state","version":2}`, `{"format":"usher-state","version":1}`} {
		put(t, d.file("edge"+suffix), text, 0o600)
		_, err := read(d, "edge")
		add(err)
	}
	put(t, d.file("edge"+suffix), "", 0o600)
	chmod(t, d.file("edge"+suffix), 0o644)
	_, err = read(d, "edge")
	add(err)
	if err := os.Mkdir(d.file("edge"+suffix), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = read(d, "edge")
	add(err)
	put(t, d.file("edge"+suffix), "", 0o600)
	if err := os.Truncate(d.file("edge"+suffix), maxSize+1); err != nil {
		t.Fatal(err)
	}
	_, err = read(d, "edge")
	add(err)
	for _, keys := range [][2][]byte{{testKey, nil}, {nil, testKey}, {testKey, testKey[1:]}} {
		text, err := encode("edge", time.Now(), nil, keys[0])
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = decode("edge", text, keys[1])
		add(err)
	}
	text, err := encode("other", time.Now(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = decode("edge", text, nil)
	add(err)
	_, err = newSealer(testKey, nil)
	add(err)
	add(d.setAside("none", "it is damaged, or no state file of Usher"))
	d.Close()
	add(d.Write("edge", nil))
	lines = append(lines, "state file: open DIR/edge.state: permission denied; Usher does without it; let the user that runs usher read it") // not for root
	lines = append(lines, "state directory DIR/state: it cannot be locked (no locks available); name one on a file system with locks",
		"state directory DIR/state: it belongs to the user 1, who could give Usher forged state, and Usher runs as the user 0; chown 0 DIR/state",
		"it belongs to another user (1)") // only for root
	messages.Check(t, lines, "fmt.Errorf", "errors.New", "badFile")
}
