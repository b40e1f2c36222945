package supportbundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

var created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func options() Options {
	return Options{Dir: "bundle", Version: "v1", Created: created, PartSize: 100, Size: 250, Timeout: 10 * time.Second}
}

func text(name, content string) Part {
	return Part{Name: name, From: "test", Collect: func(_ context.Context, to io.Writer) error {
		_, err := io.WriteString(to, content)
		return err
	}}
}

func failing(name string, before string) Part {
	return Part{Name: name, From: "test", Collect: func(_ context.Context, to io.Writer) error {
		_, _ = io.WriteString(to, before)
		return errors.New("it is away")
	}}
}

// read returns the files of an archive, and their names in order.
func read(t *testing.T, archive io.Reader) (names []string, files map[string]string) {
	t.Helper()
	compressed, err := gzip.NewReader(archive)
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for r := tar.NewReader(compressed); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if header.Mode != 0o600 || !header.ModTime.Equal(created) {
			t.Errorf("%s: mode %o, time %v", header.Name, header.Mode, header.ModTime)
		}
		names = append(names, header.Name)
		files[header.Name] = string(content)
	}
}

func TestManifestSaysWhatIsThere(t *testing.T) {
	var out bytes.Buffer
	long := strings.Repeat("x", 101)
	m, err := Write(t.Context(), &out, slices.Values([]Part{
		text("a", "hello"), failing("b", ""), failing("c", "half"), text("d", long), text("e", long), text("f", long), text("g", ""),
	}), options())
	if err != nil {
		t.Fatal(err)
	}
	names, files := read(t, &out)
	if want := []string{"bundle/a", "bundle/c", "bundle/d", "bundle/e", "bundle/f", "bundle/g", "bundle/manifest.json"}; !slices.Equal(names, want) {
		t.Errorf("the archive has %q, want %q", names, want)
	}
	const cut = "the rest is left out: a file may have 100 bytes, and all files together 250"
	want := []File{
		{"a", "test", 5, false, ""},
		{"b", "test", 0, true, "it is away"},
		{"c", "test", 4, false, "it is away"},
		{"d", "test", 100, false, cut},
		{"e", "test", 100, false, cut},
		{"f", "test", 41, false, cut},
		{"g", "test", 0, false, ""},
	}
	var read Manifest
	if err := json.Unmarshal([]byte(files["bundle/manifest.json"]), &read); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(read.Files, want) || !slices.Equal(m.Files, want) || read.Version != "v1" || !read.Created.Equal(created) {
		t.Errorf("got  %+v\nwant %+v", read, want)
	}
	if files["bundle/a"] != "hello" || files["bundle/c"] != "half" || files["bundle/f"] != long[:41] {
		t.Errorf("the archive has %q", files)
	}
}

func TestAPartThatHangsDoesNotHoldUpOthers(t *testing.T) {
	var out bytes.Buffer
	o := options()
	o.Timeout = time.Millisecond
	hanging := Part{Name: "a", Collect: func(ctx context.Context, _ io.Writer) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	m, err := Write(t.Context(), &out, slices.Values([]Part{hanging, text("b", "hello")}), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Files) != 2 || !m.Files[0].Missing || m.Files[1].Missing {
		t.Errorf("%+v", m.Files)
	}
}

func TestWriteEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	stop := Part{Name: "a", Collect: func(context.Context, io.Writer) error {
		cancel()
		return nil
	}}
	_, err := Write(ctx, io.Discard, slices.Values([]Part{stop, text("b", "hello")}), options())
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it is cancelled", err)
	}
}

func TestWriteReportsThatTheArchiveCannotBeWritten(t *testing.T) {
	r, w := io.Pipe()
	r.Close()
	if _, err := Write(t.Context(), w, slices.Values([]Part{text("a", "hello")}), options()); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v, want %v", err, io.ErrClosedPipe)
	}
}
