package main

import (
	"archive/tar"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// writeArchive writes the image as one file that is two things, like those of docker save: an OCI layout, from which
// containerd and newer Dockers take all architectures under one name, and a Docker archive (manifest.json).
//
// In a Docker archive a name means one architecture. So each has its own name, NAME:TAG-ARCH, and the first one
// has the plain name, too. The SBOMs are not in it, because an engine would import them as images.
func writeArchive(file string, image v1.ImageIndex, tag name.Tag, modified time.Time) error {
	dir, err := os.MkdirTemp(filepath.Dir(file), ".archive-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	content := filepath.Join(dir, "content")
	if err := writeLayout(content, named(image, tag)); err != nil {
		return err
	}
	manifest, err := dockerManifest(image, reference(tag))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(content, "manifest.json"), manifest, 0o644); err != nil {
		return err
	}
	part := filepath.Join(dir, "part")
	if err := archiveDirectory(part, content, modified); err != nil {
		return err
	}
	return os.Rename(part, file)
}

// dockerManifest returns the manifest.json of the archive.
func dockerManifest(image v1.ImageIndex, reference string) ([]byte, error) {
	index, err := image.IndexManifest()
	if err != nil {
		return nil, err
	}
	var manifest tarball.Manifest
	for i, desc := range index.Manifests {
		platform, err := image.Image(desc.Digest)
		if err != nil {
			return nil, err
		}
		m, err := platform.Manifest()
		if err != nil {
			return nil, err
		}
		entry := tarball.Descriptor{Config: blob(m.Config.Digest), RepoTags: []string{reference + "-" + desc.Platform.Architecture}}
		if i == 0 {
			entry.RepoTags = append(entry.RepoTags, reference)
		}
		for _, layer := range m.Layers {
			entry.Layers = append(entry.Layers, blob(layer.Digest))
		}
		manifest = append(manifest, entry)
	}
	return json.Marshal(manifest)
}

// blob returns the path of a blob in an OCI layout.
func blob(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// archiveDirectory writes the files of a directory to a tar file, in the order of their paths.
func archiveDirectory(file, dir string, modified time.Time) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return addFile(w, filepath.ToSlash(name), content, 0o644, modified)
	})
	if err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Close()
}
