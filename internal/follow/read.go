package follow

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// MaxSize is how many bytes of a file are read.
const MaxSize = 1 << 20

// ReadFile returns what is in the file that path leads to. Unlike os.ReadFile it
// takes regular files only and never more than MaxSize, so that a FIFO, a device
// or a file that grows without end is an error, and not a reader that waits or
// eats all memory. The error is a *fs.PathError.
func ReadFile(path string) ([]byte, error) {
	// Before it is opened: some devices do something when they are.
	info, err := os.Stat(path)
	if err == nil {
		err = isFit(path, info)
	}
	if err != nil {
		return nil, err
	}
	// It may be another one by now, and opening a FIFO waits for a writer.
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
