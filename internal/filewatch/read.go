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

// ReadFile returns the content of the file at path, and follows links. Unlike
// os.ReadFile it reads only regular files of at most MaxSize. For a FIFO, a device or
// an endless file it returns an error; it neither blocks nor uses up the memory. The
// error is a *fs.PathError.
func ReadFile(path string) ([]byte, error) {
	// Check before opening: opening a device can have side effects.
	info, err := os.Stat(path)
	if err == nil {
		err = isFit(path, info)
	}
	if err != nil {
		return nil, err
	}
	// Check again after opening: the file may have been replaced. O_NONBLOCK keeps
	// the open of a FIFO from waiting for a writer.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err = file.Stat(); err == nil {
		err = isFit(path, info)
	}
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxSize {
		return nil, unfit(path, errTooLarge)
	}
	return text, nil
}

var (
	errNotRegular = errors.New("it is not a regular file")
	errTooLarge   = fmt.Errorf("it has more than %d bytes", MaxSize)
)

func isFit(path string, info fs.FileInfo) error {
	switch {
	case info.IsDir():
		return unfit(path, syscall.EISDIR)
	case !info.Mode().IsRegular():
		return unfit(path, errNotRegular)
	case info.Size() > MaxSize:
		return unfit(path, errTooLarge)
	}
	return nil
}

func unfit(path string, err error) error { return &fs.PathError{Op: "read", Path: path, Err: err} }
