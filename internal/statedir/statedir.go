// Package statedir keeps what Usher has to know after a restart in files of one directory. It knows files, and not what
// is in them.
//
// A file is never changed: Write makes a new one and renames it. Read returns exactly what Write was given, or an error.
// A file that is not as Write left it is set aside under another name, so that an administrator can look at it.
package statedir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	suffix     = ".state" // of the name of every file that Write makes
	tempPrefix = ".tmp-"  // of the names of files that Write has not finished
	badInfix   = ".bad-"  // between the name of a file that is set aside and the time
	lockName   = ".lock"
	keptBad    = 3         // how many files that were set aside stay, for each name
	maxSize    = 256 << 20 // of a file, in bytes
	// MinKey is the least length of a key, in bytes.
	MinKey = 16
)

// Dir is an open state directory. Its methods may be called at the same time, for one name only one after the other.
type Dir struct {
	path string
	key  []byte // empty: files are not encrypted

	mu       sync.Mutex // guards the fields below
	lock     *os.File   // nil after Close, and while the directory cannot be used
	closed   bool
	replaced map[*func()]bool // see OnReplaced
}

// misconfigured is why a directory must not be used at all. An administrator has to correct it.
type misconfigured struct{ error }

// Open opens the directory at path, and creates it if there is none. It removes what an earlier process has not
// finished. key encrypts the files; with nil they are not encrypted. While the directory is open, another Open of it
// returns an error, also in other processes.
//
// Open returns an error only for what is configured wrong: the key, a directory of another user or open to others, or one
// that another Usher uses. If the disk does not let it use the directory, each later call tries again.
func Open(path string, key []byte) (*Dir, error) {
	if len(key) > 0 && len(key) < MinKey {
		return nil, fmt.Errorf("the key of the state directory has %d bytes; use at least %d random ones, such as those of \"openssl rand -hex 32\"", len(key), MinKey)
	}
	lock, err := lockDir(path)
	if wrong, ok := errors.AsType[misconfigured](err); ok {
		return nil, wrong.error
	}
	d := &Dir{path: path, key: slices.Clone(key), lock: lock, replaced: map[*func()]bool{}}
	if err == nil {
		d.removeUnfinished()
	}
	return d, nil
}

// lockDir returns the locked file that shows that a directory is in use.
func lockDir(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o700); errors.Is(err, syscall.ENOTDIR) {
		return nil, misconfigured{fmt.Errorf("state directory: %w; let the user that runs usher create it, or name another one", err)}
	} else if err != nil {
		return nil, fmt.Errorf("state directory: %w; let the user that runs usher create it, or name another one", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, misconfigured{fmt.Errorf("state directory %s: other users may write to it (mode %04o), and could give Usher forged state; chmod 0700 %[1]s", path, info.Mode().Perm())}
	}
	if owner := ownerOf(info); owner != os.Geteuid() {
		return nil, misconfigured{fmt.Errorf("state directory %s: it belongs to the user %d, who could give Usher forged state, and Usher runs as the user %d; chown %[3]d %[1]s", path, owner, os.Geteuid())}
	}
	lock, err := openLock(filepath.Join(path, lockName))
	if err != nil {
		return nil, fmt.Errorf("state directory: %w; let the user that runs usher write to it", err)
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return lock, nil
	}
	lock.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, misconfigured{fmt.Errorf("state directory %s: another Usher uses it (%w); give each Usher its own directory", path, err)}
	}
	return nil, fmt.Errorf("state directory %s: it cannot be locked (%w); name one on a file system with locks", path, err)
}

// openLock opens the file that is locked. On a disk that is read-only the one that is there is enough: what was saved can
// be read.
func openLock(path string) (*os.File, error) {
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, syscall.EROFS) {
		return os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	}
	return lock, err
}

// ownerOf returns the user ID of the owner of a file.
func ownerOf(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

// removeUnfinished removes the files of writes that an earlier process has not finished. If it cannot, they only take room.
func (d *Dir) removeUnfinished() {
	list, _ := filepath.Glob(d.file(tempPrefix + "*")) // the pattern is valid
	for _, path := range list {
		os.RemoveAll(path) // the next Open tries again
	}
}

// Close ends the use of the directory. Calls of the other methods after it return an error.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}

// Path returns the path that the directory was opened with.
func (d *Dir) Path() string { return d.path }

// Encrypted reports whether the files are encrypted.
func (d *Dir) Encrypted() bool { return len(d.key) > 0 }

func (d *Dir) file(name string) string { return filepath.Join(d.path, name) }

// names matches the names that Write takes.
var names = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._~-]{0,127}$`)

// OnReplaced has f called, until stop, when everything in the directory has to be written again: it was removed or
// replaced, or could not be used before. f must not block, and must not call a method of d.
func (d *Dir) OnReplaced(f func()) (stop func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.replaced[&f] = true
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.replaced, &f)
	}
}

// check returns an error unless the name is one that Write takes and the directory can be used.
func (d *Dir) check(name string) error {
	if !names.MatchString(name) {
		return fmt.Errorf("state file %q: the name has other characters than letters, digits, and ._~-, or is too long", name)
	}
	return d.checkLock()
}

// checkLock returns nil if the directory is the locked one. If that was removed or replaced, or could not be used,
// checkLock locks the one that is there now.
func (d *Dir) checkLock() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errors.New("the state directory is closed")
	}
	if d.lock != nil {
		locked, err := d.lock.Stat()
		if err != nil {
			return err
		}
		if now, err := os.Lstat(d.file(lockName)); err == nil && os.SameFile(now, locked) {
			return nil
		}
	}
	lock, err := lockDir(d.path)
	if err != nil {
		return err
	}
	if d.lock != nil {
		d.lock.Close()
	}
	d.lock = lock
	for f := range d.replaced {
		(*f)()
	}
	return nil
}

// Write stores the payload under a name, in place of an earlier one. When it returns nil, the payload is on the disk.
// After an error, the earlier one is still there.
func (d *Dir) Write(name string, payload []byte) error {
	if err := d.check(name); err != nil {
		return err
	}
	if len(payload) > maxSize/2 {
		return fmt.Errorf("state file %s: it would have %d bytes, more than the limit of %d", d.file(name+suffix), len(payload), maxSize/2)
	}
	text, err := encode(name, time.Now(), payload, d.key)
	if err == nil {
		err = d.replace(name, text)
	}
	if path, ok := errors.AsType[*fs.PathError](err); ok { // the temporary file would be another message each time
		return &fs.PathError{Op: path.Op, Path: d.file(name + suffix), Err: path.Err}
	}
	if link, ok := errors.AsType[*os.LinkError](err); ok {
		return &fs.PathError{Op: link.Op, Path: link.New, Err: link.Err}
	}
	return err
}

// replace replaces a file by one with another content.
func (d *Dir) replace(name string, text []byte) error {
	file, err := os.CreateTemp(d.path, tempPrefix+name+"-*") // with the mode 0600
	if err != nil {
		return err
	}
	err = writeAndSync(file, text)
	if err == nil {
		err = os.Rename(file.Name(), d.file(name+suffix))
	}
	if err != nil {
		os.Remove(file.Name()) // the next Open removes it
		return err
	}
	return d.sync()
}

func writeAndSync(file *os.File, text []byte) error {
	_, err := file.Write(text)
	if err == nil {
		err = file.Sync()
	}
	if closed := file.Close(); err == nil {
		err = closed
	}
	return err
}

// sync puts what was renamed and removed on the disk.
func (d *Dir) sync() error {
	dir, err := os.Open(d.path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Read returns what Write stored under a name last, and when. If there is nothing, the error is fs.ErrNotExist. A file
// that cannot be used is set aside, and the error says why.
func (d *Dir) Read(name string) (payload []byte, written time.Time, err error) {
	if err := d.check(name); err != nil {
		return nil, time.Time{}, err
	}
	path := d.file(name + suffix)
	text, err := readFile(path)
	if bad, ok := errors.AsType[badFile](err); ok {
		return nil, time.Time{}, d.setAside(name, bad)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, time.Time{}, fs.ErrNotExist
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("state file: %w; Usher does without it; let the user that runs usher read it", err)
	}
	payload, written, err = decode(name, text, d.key)
	if bad, ok := errors.AsType[badFile](err); ok {
		return nil, time.Time{}, d.setAside(name, bad)
	}
	return payload, written, err
}

// readFile returns the content of a regular file of Usher's user that no other user can read or write. It follows no link.
func readFile(path string) ([]byte, error) {
	// O_NONBLOCK keeps the open of a FIFO from waiting for a writer.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO) {
		return nil, badFile("it is no regular file")
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, badFile("it is no regular file")
	case ownerOf(info) != os.Geteuid():
		return nil, badFile(fmt.Sprintf("it belongs to another user (%d)", ownerOf(info)))
	case info.Mode().Perm()&0o077 != 0:
		return nil, badFile(fmt.Sprintf("other users may read or write it (mode %04o)", info.Mode().Perm()))
	case info.Size() > maxSize:
		return nil, badFile(fmt.Sprintf("it has more than %d bytes", maxSize))
	}
	return io.ReadAll(io.LimitReader(file, maxSize))
}

// setAside renames a file that cannot be used, and returns the error that says so. It removes the oldest files that were
// set aside if there are many.
func (d *Dir) setAside(name string, why badFile) error {
	path := d.file(name + suffix)
	aside := path + badInfix + time.Now().UTC().Format("20060102T150405.000000000Z")
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("state file %s: %w; Usher does not use it, and cannot rename it: %w; remove it", path, why, err)
	}
	if list, err := filepath.Glob(path + badInfix + "*"); err == nil && len(list) > keptBad {
		slices.Sort(list)
		for _, old := range list[:len(list)-keptBad] {
			os.RemoveAll(old) // the next one that is set aside tries again
		}
	}
	return fmt.Errorf("state file %s: %w; Usher does not use it, and has renamed it to %s; remove that when you have seen it", path, why, aside)
}

// Names returns the names of all files, sorted.
func (d *Dir) Names() ([]string, error) {
	if err := d.checkLock(); err != nil {
		return nil, err
	}
	list, err := os.ReadDir(d.path) // sorted
	if err != nil {
		return nil, err
	}
	var found []string
	for _, entry := range list {
		if name, ok := strings.CutSuffix(entry.Name(), suffix); ok && names.MatchString(name) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found, nil
}

// Remove removes the file of a name. It is no error if there is none.
func (d *Dir) Remove(name string) error {
	if err := d.check(name); err != nil {
		return err
	}
	err := os.Remove(d.file(name + suffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.sync()
}
