package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// options say what to build or push.
type options struct {
	source  string     // root of Usher's module
	out     string     // directory of what is built
	image   string     // [REGISTRY/]NAME:TAG; "" means usherproxy/usher:VERSION
	version string     // of the binary; "" means the one that Go takes from git
	epoch   *time.Time // SOURCE_DATE_EPOCH; nil means the commit's time
}

// The names of what is built, in the directory of the options.
const (
	layoutDir   = "image"           // OCI layout: the image and its SBOMs
	archiveFile = "usher-image.tar" // the image for docker load and ctr images import
)

// architectures are those that the image is for. The first one gets the plain tag in the archive.
var architectures = []string{"amd64", "arm64"}

// build compiles Usher and writes the OCI layout, the archive, the binaries and the SBOMs.
func build(ctx context.Context, o options, out io.Writer) error {
	var binaries []binary
	for _, arch := range architectures {
		b, err := compile(ctx, o, "linux", arch)
		if err != nil {
			return err
		}
		binaries = append(binaries, b)
	}
	r, err := releaseOf(binaries[0], o)
	if err != nil {
		return err
	}
	tag, err := localTag(o.image, r)
	if err != nil {
		return err
	}
	licenses, err := licenses(ctx, o.source, binaries)
	if err != nil {
		return err
	}
	image, sboms, err := assemble(binaries, licenses, r)
	if err != nil {
		return err
	}
	for i, b := range binaries {
		if err := os.WriteFile(filepath.Join(o.out, sbomFile(b.os, b.arch)), sboms[i].document, 0o644); err != nil {
			return err
		}
	}
	if err := writeLayout(filepath.Join(o.out, layoutDir), withSBOMs(named(image, tag), sboms)); err != nil {
		return err
	}
	if err := writeArchive(filepath.Join(o.out, archiveFile), image, tag, r.time); err != nil {
		return err
	}
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s (%s, %s)\n", reference(tag), r.version, digest)
	return nil
}

// assemble returns the image for all architectures, and an SBOM for each.
func assemble(binaries []binary, licenses map[string][]byte, r release) (v1.ImageIndex, []sbom, error) {
	base, err := baseLayer(licenses, r.time)
	if err != nil {
		return nil, nil, err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var sboms []sbom
	for _, b := range binaries {
		image, err := newImage(base, b, r)
		if err != nil {
			return nil, nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        image,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: b.arch}},
		})
		s, err := newSBOM(image, b, r)
		if err != nil {
			return nil, nil, err
		}
		sboms = append(sboms, s)
	}
	return mutate.Annotations(index, labels(r)).(v1.ImageIndex), sboms, nil
}

// named returns the content of a layout's index.json: the image and its name.
func named(image v1.ImageIndex, tag name.Tag) v1.ImageIndex {
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
		Add: image,
		Descriptor: v1.Descriptor{Annotations: map[string]string{
			"org.opencontainers.image.ref.name": tag.TagStr(),
			"io.containerd.image.name":          reference(tag),
		}},
	})
}

// writeLayout replaces the OCI layout in a directory.
func writeLayout(dir string, index v1.ImageIndex) error {
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if _, err := layout.Write(part, index); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(part, dir)
}

var notInTags = regexp.MustCompile(`[^\w.-]`)

// localTag returns the name that the image has in the layout and the archive. The default is the one that the chart
// asks for, whose versions have no "v".
func localTag(image string, r release) (name.Tag, error) {
	if image == "" {
		image = "usherproxy/usher:" + notInTags.ReplaceAllString(strings.TrimPrefix(r.version, "v"), "-")
	}
	tag, err := name.NewTag(image)
	if err != nil {
		return name.Tag{}, fmt.Errorf("image %q: %w; use [REGISTRY/]NAME:TAG", image, err)
	}
	return tag, nil
}

// reference returns the whole name, as containerd and Docker keep it: docker.io/usherproxy/usher:1.2.3.
func reference(tag name.Tag) string {
	if tag.RegistryStr() == name.DefaultRegistry {
		return "docker.io/" + tag.RepositoryStr() + ":" + tag.TagStr()
	}
	return tag.Name()
}
