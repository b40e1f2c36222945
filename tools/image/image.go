package main

import (
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// newImage returns the image for one architecture.
func newImage(base v1.Layer, b binary, r release) (v1.Image, error) {
	usher, err := binaryLayer(b, r.time)
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: r.time}
	image, err := mutate.ConfigFile(
		mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON),
		&v1.ConfigFile{
			OS: "linux", Architecture: b.arch, Created: created,
			RootFS: v1.RootFS{Type: "layers"},
			Config: v1.Config{
				User:       userID + ":" + userID,
				Entrypoint: []string{"/" + binaryPath},
				Env:        []string{"PATH=/usr/local/bin"},
				WorkingDir: "/",
				Labels:     labels(r),
			},
		})
	if err != nil {
		return nil, err
	}
	image, err = mutate.Append(image,
		mutate.Addendum{Layer: base, History: v1.History{Created: created, CreatedBy: "tools/image: user, certificate authorities, licenses"}},
		mutate.Addendum{Layer: usher, History: v1.History{Created: created, CreatedBy: "tools/image: usher for linux/" + b.arch}})
	if err != nil {
		return nil, err
	}
	return runnable{mutate.Annotations(image, labels(r)).(v1.Image)}, nil
}

// runnable is an image that is no artifact: without it, its descriptor would have an artifact type.
type runnable struct{ v1.Image }

// ArtifactType implements an interface of the package partial.
func (runnable) ArtifactType() (string, error) { return "", nil }

// license is Usher's own, as SPDX names it.
const license = "Apache-2.0"

// labels returns the annotations of https://specs.opencontainers.org/image-spec/annotations/.
func labels(r release) map[string]string {
	const prefix, source = "org.opencontainers.image.", "https://github.com/usherproxy/usher"
	l := map[string]string{
		prefix + "title":         "usher",
		prefix + "description":   "An Envoy control plane for Consul ingress gateways, with PROXY protocol",
		prefix + "url":           source,
		prefix + "source":        source,
		prefix + "documentation": source + "/blob/main/README.md",
		prefix + "licenses":      license,
		prefix + "version":       r.version,
		prefix + "created":       r.time.Format(time.RFC3339),
	}
	if r.revision != "" {
		l[prefix+"revision"] = r.revision
	}
	return l
}
