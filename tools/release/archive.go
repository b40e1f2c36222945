package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"os"
	"slices"
	"strings"
	"time"
)

// file is a file in an archive.
type file struct {
	name    string // its path in the archive
	content []byte
	mode    int64 // 0 means 0644
}

// readFile reads a file that has another name in the archive.
func readFile(path, name string) (file, error) {
	content, err := os.ReadFile(path)
	return file{name: name, content: content}, err
}

// writeArchive writes files below one directory into a .tar.gz that depends on nothing else.
func writeArchive(path, dir string, files []file, modified time.Time) error {
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out) // without a name and a time
	archive := tar.NewWriter(zipped)
	for _, f := range files {
		header := tar.Header{
			Typeflag: tar.TypeReg, Name: dir + "/" + f.name, Size: int64(len(f.content)),
			Mode: cmp.Or(f.mode, 0o644), ModTime: modified, Format: tar.FormatPAX, Uname: "root", Gname: "root",
		}
		if err := archive.WriteHeader(&header); err != nil {
			return err
		}
		if _, err := archive.Write(f.content); err != nil {
			return err
		}
	}
	if err := archive.Close(); err != nil {
		return err
	}
	if err := zipped.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}

// compressed returns a file for a directory that has compressed ones, such as those of manual pages. Debian's policy asks for
// the best compression (12.1).
func (f file) compressed() (file, error) {
	var out bytes.Buffer
	zipped, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return file{}, err
	}
	if _, err := zipped.Write(f.content); err != nil {
		return file{}, err
	}
	err = zipped.Close()
	return file{name: f.name + ".gz", content: out.Bytes()}, err
}
