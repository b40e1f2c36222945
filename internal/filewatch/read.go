package filewatch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// MaxSize is the largest size of a file, in bytes, that ReadFile reads.
const MaxSize = 1 << 20

// ReadFile returns the content of the file at path, and follows links. Unlike os.ReadFile it reads only regular
// files of at most MaxSize. For a FIFO, a device or an endless file it returns an error; it neither blocks nor uses
// up the memory. The error is a *fs.PathError.
func ReadFile(path string) ([]byte, error) {
	// Check before opening: opening a device can have side effects.
	if err := check(path, func() (fs.FileInfo, error) { return os.Stat(path) }); err != nil {
		return nil, err
	}
	// O_NONBLOCK keeps the open of a FIFO from waiting for a writer.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	// Check again: the file may have been replaced.
	if err := check(path, file.Stat); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, MaxSize+1))
	if err == nil && len(text) > MaxSize {
		err = &fs.PathError{Op: "read", Path: path, Err: errTooLarge}
	}
	if err != nil {
		return nil, err
	}
	return text, nil
}

var (
	errNotRegular = errors.New("it is not a regular file")
	errTooLarge   = fmt.Errorf("it has more than %d bytes", MaxSize)
)

// check returns an error if the file at path is not one that ReadFile reads.
func check(path string, stat func() (fs.FileInfo, error)) error {
	info, err := stat()
	switch {
	case err != nil:
		return err
	case info.IsDir():
		err = syscall.EISDIR
	case !info.Mode().IsRegular():
		err = errNotRegular
	case info.Size() > MaxSize:
		err = errTooLarge
	default:
		return nil
	}
	return &fs.PathError{Op: "read", Path: path, Err: err}
}

// Unreadable returns, in the words of a problem, the error of a file or directory that cannot be read and what to
// do: fix, unless the cause says more.
func Unreadable(err error, fix string) string {
	if cause, ok := errors.AsType[*fs.PathError](err); ok {
		err = cause.Err
	}
	if errors.Is(err, fs.ErrPermission) {
		fix = "let the user that runs usher read it"
	}
	return fmt.Sprintf("cannot be read: %v; %s", err, fix)
}
