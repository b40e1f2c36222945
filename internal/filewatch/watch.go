package filewatch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxLinks is how many symbolic links a path may take, as in path_resolution(7).
const maxLinks = 40

// watched is what counts among the events. All paths are free of symbolic links
// but for their last name, as the events' are.
type watched struct {
	names map[string]bool // what happens to these counts
	all   map[string]bool // and to everything in these directories
}

func (w watched) concerns(name string) bool {
	return w.names[name] || w.all[filepath.Dir(name)]
}

// watch makes the watches those that the paths need now; any may be missing.
// Only directories are watched, for a file that is replaced by a rename takes
// its own watch with it.
func (f *Watcher) watch(paths []string) error {
	first := f.watched.names == nil
	f.watched = watched{names: map[string]bool{}, all: map[string]bool{}}
	for _, path := range paths {
		real := f.find(path)
		dir := filepath.Dir(real)
		if f.whole {
			dir = real
			f.watched.all[dir] = true
		}
		err := f.watcher.Add(dir)
		// What is taken away later is seen to come back by its parent's watch.
		away := errors.Is(err, fs.ErrNotExist) || !first && errors.Is(err, fs.ErrPermission)
		if err != nil && !away {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
		if f.whole {
			f.findLinked(dir)
		}
	}
	f.forget()
	return nil
}

// findLinked watches what the symbolic links in dir lead to.
func (f *Watcher) findLinked(dir string) {
	listed, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range listed {
		if e.Type()&fs.ModeSymlink != 0 {
			f.find(filepath.Join(dir, e.Name()))
		}
	}
}

// find gives what path, which is absolute, leads to, or the first that is
// missing on the way. It watches all that can make it lead elsewhere: the
// symbolic links on the way, the file and its directory. That a directory
// farther up is replaced goes unseen.
func (f *Watcher) find(path string) string {
	at, rest := "/", names(path)
	for links := 0; len(rest) > 0 && links < maxLinks; {
		next := filepath.Join(at, rest[0])
		target, err := os.Readlink(next)
		if isLast := len(rest) == 1; isLast || !isPlain(err) {
			f.name(at)
			f.name(next)
			target, err = os.Readlink(next) // as it is since it is watched
		}
		rest = rest[1:]
		switch {
		case isPlain(err):
			at = next
		case err != nil:
			return next
		default:
			links++
			rest = append(names(target), rest...)
			if filepath.IsAbs(target) {
				at = "/"
			}
		}
	}
	return at
}

// isPlain tells from the error of Readlink that something is there that is no
// symbolic link.
func isPlain(err error) bool { return errors.Is(err, syscall.EINVAL) }

func names(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == filepath.Separator })
}

// name makes the events of path count. A directory that may not be listed costs
// no more than that a replacement in it goes unseen.
func (f *Watcher) name(path string) {
	f.watched.names[path] = true
	_ = f.watcher.Add(filepath.Dir(path))
}

// forget ends the watches of directories in which nothing counts any more.
func (f *Watcher) forget() {
	needed := map[string]bool{}
	for dir := range f.watched.all {
		needed[dir] = true
	}
	for name := range f.watched.names {
		needed[filepath.Dir(name)] = true
	}
	for _, dir := range f.watcher.WatchList() {
		if !needed[dir] {
			_ = f.watcher.Remove(dir) // gone already
		}
	}
}
