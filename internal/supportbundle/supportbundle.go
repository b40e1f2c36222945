// Package supportbundle writes an archive with what others need to find out what is wrong: the answers of several sources,
// and a manifest that says what is there, and what is not and why. The archive is a tar file in gzip.
package supportbundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

// ManifestName is the name of the manifest in the archive. It is the last file.
const ManifestName = "manifest.json"

// Part is a file of an archive.
type Part struct {
	Name string // its path in the archive
	From string // where the content comes from, for the manifest
	// Collect writes the content, without secrets. What it has written before an error is in the archive, too.
	Collect func(ctx context.Context, to io.Writer) error
}

// Options describe an archive. All are required.
type Options struct {
	Dir      string        // that all files of the archive are in
	Version  string        // of the program, for the manifest
	Created  time.Time     // for the manifest and the files
	PartSize int64         // bytes of a part, at most. One part is in memory at a time.
	Size     int64         // bytes of all parts together, at most, before they are compressed
	Timeout  time.Duration // for each part
}

// Manifest says what is in an archive.
type Manifest struct {
	Version string    `json:"version"`
	Created time.Time `json:"created"`
	Files   []File    `json:"files"`
}

// File is a part in a manifest.
type File struct {
	Name    string `json:"name"`
	From    string `json:"from"`
	Size    int    `json:"size"`
	Missing bool   `json:"missing,omitempty"` // it is not in the archive; Problem says why
	Problem string `json:"problem,omitempty"` // why it is not there, or not as a whole
}

// Write collects the parts, and writes the archive. A part that cannot be had is in the manifest, with the reason. The error
// is that of w, or of ctx.
func Write(ctx context.Context, w io.Writer, parts iter.Seq[Part], o Options) (Manifest, error) {
	compressed := gzip.NewWriter(w)
	a := archive{Options: o, tar: tar.NewWriter(compressed), left: o.Size}
	m := Manifest{Version: o.Version, Created: o.Created, Files: []File{}}
	for p := range parts {
		file, err := a.add(ctx, p)
		if err != nil {
			return m, err
		}
		m.Files = append(m.Files, file)
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, err
	}
	err = a.write(ManifestName, append(text, '\n'))
	return m, errors.Join(err, a.tar.Close(), compressed.Close())
}

// archive is one that is being written.
type archive struct {
	Options
	tar  *tar.Writer
	left int64 // bytes
}

// add collects a part, and writes it if there is one.
func (a *archive) add(ctx context.Context, p Part) (File, error) {
	to := limited{limit: min(a.PartSize, a.left)}
	err := a.collect(ctx, p, &to)
	if ended := ctx.Err(); ended != nil {
		return File{}, ended
	}
	if to.full {
		err = fmt.Errorf("the rest is left out: a file may have %d bytes, and all files together %d", a.PartSize, a.Size)
	}
	file := File{Name: p.Name, From: p.From, Size: to.content.Len()}
	if err != nil {
		file.Problem, file.Missing = err.Error(), file.Size == 0
	}
	if file.Missing {
		return file, nil
	}
	a.left -= int64(file.Size)
	return file, a.write(p.Name, to.content.Bytes())
}

func (a *archive) collect(ctx context.Context, p Part, to io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	return p.Collect(ctx, to)
}

func (a *archive) write(name string, content []byte) error {
	header := &tar.Header{Name: a.Dir + "/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: a.Created, Format: tar.FormatPAX}
	if err := a.tar.WriteHeader(header); err != nil {
		return err
	}
	_, err := a.tar.Write(content)
	return err
}

// limited is a buffer with a limit. It has no other way in than Write.
type limited struct {
	content bytes.Buffer
	limit   int64
	full    bool // there was more
}

var errFull = errors.New("the limit of the file is reached")

// Write implements io.Writer. It takes what there is space for.
func (l *limited) Write(p []byte) (int, error) {
	space := l.limit - int64(l.content.Len())
	if int64(len(p)) <= space {
		return l.content.Write(p)
	}
	l.full = true
	n, _ := l.content.Write(p[:space])
	return n, errFull
}
