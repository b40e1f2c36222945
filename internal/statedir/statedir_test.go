package statedir

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var testKey = []byte("a secret of the operator, 32 bytes")

func open1(t *testing.T, path string, key []byte) *Dir {
	t.Helper()
	d, err := Open(path, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func reopen(t *testing.T, d *Dir, key []byte) *Dir {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return open1(t, d.path, key)
}

func write(t *testing.T, d *Dir, name, payload string) {
	t.Helper()
	if err := d.Write(name, []byte(payload)); err != nil {
		t.Fatal(err)
	}
}

// read returns the payload of a name, and the empty string with an error.
func read(d *Dir, name string) (string, error) {
	payload, _, err := d.Read(name)
	return string(payload), err
}

// bad returns the files that were set aside.
func bad(t *testing.T, d *Dir) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(d.path, "*"+badInfix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestReadReturnsWhatWasWrittenLast(t *testing.T) {
	t.Parallel()
	for _, key := range [][]byte{nil, testKey} {
		d := open1(t, filepath.Join(t.TempDir(), "not", "there", "yet"), key)
		if _, err := read(d, "edge"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("before the first write: %v, want fs.ErrNotExist", err)
		}
		begin := time.Now()
		write(t, d, "edge", "first")
		write(t, d, "edge", "second\nwith lines\n")
		write(t, d, "other", "")
		d = reopen(t, d, key)
		payload, written, err := d.Read("edge")
		if err != nil || string(payload) != "second\nwith lines\n" {
			t.Errorf("got %q, %v", payload, err)
		}
		if written.Before(begin.Truncate(0).Add(-time.Second)) || written.After(time.Now().Add(time.Second)) {
			t.Errorf("written at %v, want a time after %v", written, begin)
		}
		if got, err := d.Names(); err != nil || !slices.Equal(got, []string{"edge", "other"}) {
			t.Errorf("names %q, %v", got, err)
		}
		if err := errors.Join(d.Remove("edge"), d.Remove("edge")); err != nil {
			t.Error(err)
		}
		if _, err := read(d, "edge"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after its removal: %v, want fs.ErrNotExist", err)
		}
	}
}

func TestOnlyTheOwnerMayReadAndKeysHideThePayload(t *testing.T) {
	t.Parallel()
	d := open1(t, filepath.Join(t.TempDir(), "state"), testKey)
	write(t, d, "edge", "BEGIN PRIVATE KEY")
	for path, mode := range map[string]fs.FileMode{d.path: 0o700, d.file("edge" + suffix): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s has the mode %v, want %v (%v)", path, info.Mode().Perm(), mode, err)
		}
	}
	text, err := os.ReadFile(d.file("edge" + suffix))
	if err != nil || bytes.Contains(text, []byte("PRIVATE")) || bytes.Contains(text, testKey) {
		t.Errorf("the file has secrets: %q, %v", text, err)
	}
}

// TestNothingThatChangedIsServed changes a file in every byte, and cuts it off at every byte.
func TestNothingThatChangedIsServed(t *testing.T) {
	t.Parallel()
	for _, key := range [][]byte{nil, testKey} {
		good, err := encode("edge", time.Now(), []byte("the payload"), key)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := decode("edge", good, key); err != nil {
			t.Fatal(err)
		}
		for i := range good {
			for _, flip := range []byte{1, 0x20, 0x80} {
				changed := slices.Clone(good)
				changed[i] ^= flip
				if payload, _, err := decode("edge", changed, key); err == nil {
					t.Errorf("byte %d changed by %#x: it is read as %q", i, flip, payload)
				}
			}
			if payload, _, err := decode("edge", good[:i], key); err == nil {
				t.Errorf("cut off after %d bytes: it is read as %q", i, payload)
			}
		}
		if _, _, err := decode("edge", append(good, '\n'), key); err == nil {
			t.Error("a longer file is read")
		}
	}
}

func TestAnUnusableFileIsSetAside(t *testing.T) {
	t.Parallel()
	edit := func(was, is string) func(*testing.T, *Dir) {
		return func(t *testing.T, d *Dir) {
			path := d.file("edge" + suffix)
			text, err := os.ReadFile(path)
			if err != nil || !bytes.Contains(text, []byte(was)) {
				t.Fatalf("%q is not in %q (%v)", was, text, err)
			}
			put(t, path, string(bytes.Replace(text, []byte(was), []byte(is), 1)), 0o600)
		}
	}
	for name, test := range map[string]struct {
		key, keyAfter []byte
		change        func(*testing.T, *Dir)
		want          string
	}{
		"damaged":       {change: edit("payload", "Payload"), want: "its checksum is wrong"},
		"other time":    {change: edit(`"written":"2`, `"written":"1`), want: "its checksum is wrong"},
		"empty":         {change: func(t *testing.T, d *Dir) { put(t, d.file("edge"+suffix), "", 0o600) }, want: "no state file"},
		"other format":  {change: edit(format, "usher-other"), want: "no state file"},
		"other version": {change: edit(`"version":1`, `"version":2`), want: "another version of Usher"},
		"a copy": {change: func(t *testing.T, d *Dir) {
			write(t, d, "other", "of another gateway")
			if err := os.Rename(d.file("other"+suffix), d.file("edge"+suffix)); err != nil {
				t.Fatal(err)
			}
		}, want: "a copy of another"},
		"no key":             {key: testKey, want: "Usher has no key"},
		"other key":          {key: testKey, keyAfter: bytes.ToUpper(testKey), want: "another key"},
		"not encrypted":      {keyAfter: testKey, want: "not encrypted"},
		"readable by others": {change: func(t *testing.T, d *Dir) { chmod(t, d.file("edge"+suffix), 0o640) }, want: "other users"},
		"a link": {change: func(t *testing.T, d *Dir) {
			path := d.file("edge" + suffix)
			if err := errors.Join(os.Rename(path, path+".real"), os.Symlink(path+".real", path)); err != nil {
				t.Fatal(err)
			}
		}, want: "no regular file"},
		"a directory": {change: func(t *testing.T, d *Dir) {
			path := d.file("edge" + suffix)
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, want: "no regular file"},
		"a FIFO": {change: func(t *testing.T, d *Dir) {
			path := d.file("edge" + suffix)
			if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)); err != nil {
				t.Fatal(err)
			}
		}, want: "no regular file"},
		"huge": {change: func(t *testing.T, d *Dir) {
			if err := os.Truncate(d.file("edge"+suffix), maxSize+1); err != nil {
				t.Fatal(err)
			}
		}, want: "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := open1(t, filepath.Join(t.TempDir(), "state"), test.key)
			write(t, d, "edge", "the payload")
			if test.change != nil {
				test.change(t, d)
			}
			d = reopen(t, d, test.keyAfter)
			payload, err := read(d, "edge")
			if err == nil || payload != "" || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %q, %v; want an error with %q", payload, err, test.want)
			}
			list := bad(t, d)
			if len(list) != 1 || !strings.Contains(err.Error(), list[0]) {
				t.Errorf("set aside are %q, which the error does not name: %v", list, err)
			}
			if _, err := read(d, "edge"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the second time: %v, want fs.ErrNotExist", err)
			}
			write(t, d, "edge", "new")
			if payload, err := read(d, "edge"); payload != "new" {
				t.Errorf("after another write: %q, %v", payload, err)
			}
		})
	}
}

func put(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestOnlySomeFilesThatWereSetAsideStay(t *testing.T) {
	t.Parallel()
	d := open1(t, t.TempDir(), nil)
	var last string
	for range keptBad + 2 {
		put(t, d.file("edge"+suffix), "garbage", 0o600)
		_, err := read(d, "edge")
		if err == nil {
			t.Fatal("garbage is read")
		}
		last = err.Error()
	}
	list := bad(t, d)
	if len(list) != keptBad || !strings.Contains(last, list[keptBad-1]) {
		t.Errorf("%d files were set aside: %q; the last: %s", len(list), list, last)
	}
	if got, err := d.Names(); err != nil || len(got) > 0 {
		t.Errorf("names %q, %v; want none", got, err)
	}
}

func TestTwoUshersDoNotShareADirectory(t *testing.T) {
	t.Parallel()
	d := open1(t, t.TempDir(), nil)
	if _, err := Open(d.path, nil); err == nil || !strings.Contains(err.Error(), "another Usher uses it") {
		t.Errorf("a second Open: %v", err)
	}
	d = reopen(t, d, nil)
	write(t, d, "edge", "payload")
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if err := d.Write("edge", nil); err == nil {
		t.Error("Write after Close returned no error")
	}
}

func TestOpenRefusesADirectoryThatOthersMayWriteTo(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	chmod(t, path, 0o770)
	if _, err := Open(path, nil); err == nil || !strings.Contains(err.Error(), "chmod 0700 "+path) {
		t.Errorf("got %v", err)
	}
	put(t, filepath.Join(path, "file"), "", 0o600)
	if _, err := Open(filepath.Join(path, "file"), nil); err == nil {
		t.Error("a file is opened as a directory")
	}
}

func TestOpenRefusesAShortKey(t *testing.T) {
	t.Parallel()
	if _, err := Open(t.TempDir(), []byte("short")); err == nil || !strings.Contains(err.Error(), "at least 16") {
		t.Errorf("got %v", err)
	}
}

func TestOpenRemovesWhatIsNotFinished(t *testing.T) {
	t.Parallel()
	d := open1(t, t.TempDir(), nil)
	write(t, d, "edge", "payload")
	half := d.file(tempPrefix + "edge-123")
	put(t, half, "half", 0o600)
	d = reopen(t, d, nil)
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file that was not finished is there: %v", err)
	}
	if payload, err := read(d, "edge"); payload != "payload" {
		t.Errorf("got %q, %v", payload, err)
	}
}

func TestAFailedWriteKeepsTheLastFile(t *testing.T) {
	t.Parallel()
	d := open1(t, t.TempDir(), nil)
	write(t, d, "edge", "payload")
	// A directory in the place of a file makes every rename fail, for root also.
	if err := os.MkdirAll(filepath.Join(d.file("other"+suffix), "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("other", []byte("next")); err == nil || strings.Contains(err.Error(), tempPrefix) || !strings.Contains(err.Error(), d.file("other"+suffix)) {
		t.Errorf("Write returned %v, want an error with the file's name", err)
	}
	if err := d.Write("../edge", []byte("next")); err == nil {
		t.Error("a name with a slash is taken")
	}
	if payload, err := read(d, "edge"); payload != "payload" {
		t.Errorf("got %q, %v", payload, err)
	}
	if list, err := filepath.Glob(d.file(tempPrefix + "*")); err != nil || len(list) > 0 {
		t.Errorf("temporary files stay: %q, %v", list, err)
	}
}

func TestAWriteThatFailsAgainHasTheSameWords(t *testing.T) {
	d := open1(t, t.TempDir(), nil)
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	first, second := d.Write("edge", []byte("payload")), d.Write("edge", []byte("payload"))
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if want := "open " + d.file("edge"+suffix) + ": too many open files"; fmt.Sprint(first) != want || fmt.Sprint(second) != want {
		t.Errorf("the errors are %v and %v, want %s", first, second, want)
	}
}

func TestADirectoryThatWasRemovedIsMadeAgain(t *testing.T) {
	t.Parallel()
	d := open1(t, filepath.Join(t.TempDir(), "state"), nil)
	var again [2]int
	for i := range again {
		d.OnReplaced(func() { again[i]++ })
	}
	d.OnReplaced(func() { t.Error("this one was stopped") })()
	write(t, d, "edge", "payload")
	if err := os.RemoveAll(d.path); err != nil {
		t.Fatal(err)
	}
	write(t, d, "edge", "next")
	if again != [2]int{1, 1} {
		t.Errorf("the users of the directory were called %v times, want each once", again)
	}
	if _, err := Open(d.path, nil); err == nil {
		t.Error("the new directory is not locked")
	}
	if payload, err := read(d, "edge"); payload != "next" {
		t.Errorf("got %q, %v", payload, err)
	}
}

// What an administrator has not configured wrong does not keep Usher from starting. When the directory can be used, it is.
func TestADirectoryThatCannotBeUsedYetIsUsedLater(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	if err := os.MkdirAll(filepath.Join(path, lockName), 0o700); err != nil { // as good as any fault of a disk, for root also
		t.Fatal(err)
	}
	d := open1(t, path, nil)
	again := 0
	d.OnReplaced(func() { again++ })
	if _, err := d.Names(); err == nil {
		t.Error("Names returned no error")
	}
	if err := d.Write("edge", nil); err == nil {
		t.Error("Write returned no error")
	}
	if err := os.Remove(filepath.Join(path, lockName)); err != nil {
		t.Fatal(err)
	}
	write(t, d, "edge", "payload")
	if payload, err := read(d, "edge"); payload != "payload" || again != 1 {
		t.Errorf("got %q, %v; called %d times", payload, err, again)
	}
}

func TestFilesOfAnotherUserAreNotUsed(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // only root can give a file to another user
	}
	d := open1(t, t.TempDir(), nil)
	write(t, d, "edge", "payload")
	if err := os.Chown(d.file("edge"+suffix), 12345, -1); err != nil {
		t.Fatal(err)
	}
	if payload, err := read(d, "edge"); err == nil || payload != "" || !strings.Contains(err.Error(), "belongs to another user (12345)") {
		t.Errorf("got %q, %v", payload, err)
	}
	path := t.TempDir()
	if err := os.Chown(path, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, nil); err == nil || !strings.Contains(err.Error(), "belongs to the user 12345") {
		t.Errorf("got %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, key := range [][]byte{nil, testKey} {
		text, err := encode("edge", time.Unix(0, 0), []byte("payload"), key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, key)
	}
	f.Add([]byte(`{"format":"usher-state","version":1,"encrypted":true,"salt":""}`), testKey)
	f.Fuzz(func(t *testing.T, text, key []byte) {
		payload, _, err := decode("edge", text, key)
		if err != nil {
			if _, ok := errors.AsType[badFile](err); !ok || payload != nil {
				t.Errorf("got %q, %v", payload, err)
			}
			return
		}
		if len(key) == 0 && !bytes.HasSuffix(text, payload) {
			t.Errorf("%q is read from %q", payload, text)
		}
	})
}
