package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/pem"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"

	"github.com/usherproxy/usher/tools/image/notices"
)

// Paths in the image.
const (
	binaryPath = "usr/local/bin/usher"
	rootsPath  = "etc/ssl/certs/ca-certificates.crt" // where Go looks first
	docPath    = "usr/share/doc/usher"
)

// The user of the image. Kubernetes compares the number with runAsNonRoot, so it has to be one.
const (
	userID = "65532"
	passwd = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"
	group  = "root:x:0:\nnonroot:x:65532:\n"
)

// baseLayer returns what all architectures share.
func baseLayer(licenses map[string][]byte, modified time.Time) (v1.Layer, error) {
	files := map[string][]byte{
		"etc/passwd": []byte(passwd),
		"etc/group":  []byte(group),
		rootsPath:    rootCertificates(),
	}
	maps.Copy(files, licenses)
	return newLayer(files, 0o644, modified)
}

// licenses returns the files with the license of Usher, and with those of what else is in the image.
func licenses(ctx context.Context, source string, all []binary) (map[string][]byte, error) {
	own, err := os.ReadFile(filepath.Join(source, "LICENSE"))
	if err != nil {
		return nil, err
	}
	var infos []*buildinfo.BuildInfo
	for _, b := range all {
		infos = append(infos, b.info)
	}
	others, err := notices.OfBinaries(ctx, source, infos...)
	if err != nil {
		return nil, err
	}
	roots, err := notices.OfModules(ctx, filepath.Join(source, "tools", "image"), rootsModule)
	return map[string][]byte{
		docPath + "/LICENSE":              own,
		docPath + "/THIRD-PARTY-LICENSES": append(others, roots...),
	}, err
}

// rootCertificates returns the authorities that Mozilla trusts, in PEM.
//
// Usher needs them for a Consul behind a public certificate. They come from a Go module that go.sum fixes, because
// those of the machine that builds would make the image depend on it. A root that Mozilla trusts with conditions
// is left out, because PEM has no place for the conditions.
func rootCertificates() []byte {
	var out bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // a buffer takes everything
		}
	}
	return out.Bytes()
}

// binaryLayer returns the layer with Usher's binary.
func binaryLayer(b binary, modified time.Time) (v1.Layer, error) {
	return newLayer(map[string][]byte{binaryPath: b.content}, 0o755, modified)
}

// newLayer returns a layer with files of one mode and the directories above them. Everything belongs to root.
func newLayer(files map[string][]byte, mode int64, modified time.Time) (v1.Layer, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	made := map[string]bool{".": true}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if err := addDirectories(w, path.Dir(file), made, modified); err != nil {
			return nil, err
		}
		if err := addFile(w, file, files[file], mode, modified); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

// addDirectories adds a directory and those above it, each once.
func addDirectories(w *tar.Writer, dir string, made map[string]bool, modified time.Time) error {
	if made[dir] {
		return nil
	}
	made[dir] = true
	if err := addDirectories(w, path.Dir(dir), made, modified); err != nil {
		return err
	}
	return w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: modified, Format: tar.FormatUSTAR,
	})
}

func addFile(w *tar.Writer, name string, content []byte, mode int64, modified time.Time) error {
	header := &tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: mode, ModTime: modified,
		Format: tar.FormatUSTAR,
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
