package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/package-url/packageurl-go"
)

// The media type of a CycloneDX document in JSON, and the module with the certificate authorities.
const (
	sbomType    = "application/vnd.cyclonedx+json"
	rootsModule = "golang.org/x/crypto/x509roots/fallback"
)

// sbomFile returns the name of the file with the SBOM of the binary for a platform.
func sbomFile(system, arch string) string { return binaryFile(system, arch) + ".cdx.json" }

// sbom lists what is in an image, as a file and as an artifact that refers to the image.
type sbom struct {
	document []byte
	artifact v1.Image
}

// newSBOM describes an image by what the Go toolchain recorded in its binary.
func newSBOM(image v1.Image, b binary, r release) (sbom, error) {
	document, err := encodeSBOM(describe(b, r, "/"+binaryPath, module(cdx.ComponentTypeData, rootsModule, ownModule(rootsModule))))
	if err != nil {
		return sbom{}, err
	}
	subject, err := partial.Descriptor(image)
	if err != nil {
		return sbom{}, err
	}
	a, err := newArtifact(sbomFile(b.os, b.arch), document, *subject, r.time)
	if err != nil {
		return sbom{}, err
	}
	return sbom{document: document, artifact: a}, nil
}

// printSBOM writes the SBOM of a binary in a file.
func printSBOM(file string, o options, out io.Writer) error {
	b, err := readBinary(file)
	if err != nil {
		return err
	}
	document, err := sbomOf(b, o)
	if err != nil {
		return err
	}
	_, err = out.Write(document)
	return err
}

// sbomOf returns the SBOM of a binary that is in no image.
func sbomOf(b binary, o options) ([]byte, error) {
	r, err := releaseOf(b, o)
	if err != nil {
		return nil, err
	}
	return encodeSBOM(describe(b, r, "usher"))
}

// describe returns the SBOM: Usher in a file, its Go modules, the standard library, and what else there is.
func describe(b binary, r release, file string, others ...cdx.Component) *cdx.BOM {
	components := append(others, module(cdx.ComponentTypeLibrary, "stdlib", strings.TrimPrefix(b.info.GoVersion, "go")))
	for _, m := range b.info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		components = append(components, module(cdx.ComponentTypeLibrary, m.Path, m.Version))
	}
	slices.SortFunc(components, func(a, b cdx.Component) int { return strings.Compare(a.BOMRef, b.BOMRef) })
	refs := make([]string, len(components))
	for i, c := range components {
		refs[i] = c.BOMRef
	}
	usher := module(cdx.ComponentTypeApplication, b.info.Main.Path, r.version)
	sum := sha256.Sum256(b.content)
	usher.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}}
	usher.Licenses = &cdx.Licenses{{License: &cdx.License{ID: license}}}
	properties := []cdx.Property{{Name: "platform", Value: b.platform()}, {Name: "file", Value: file}}
	if r.revision != "" {
		properties = append(properties, cdx.Property{Name: "vcs.revision", Value: r.revision})
	}
	usher.Properties = &properties
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: r.time.Format(time.RFC3339), Component: &usher}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: usher.BOMRef, Dependencies: &refs}}
	return bom
}

// module returns the component for a Go module.
func module(kind cdx.ComponentType, modulePath, version string) cdx.Component {
	namespace, name := path.Split(modulePath)
	purl := packageurl.NewPackageURL(packageurl.TypeGolang, namespace, name, version, nil, "").ToString()
	return cdx.Component{BOMRef: purl, Type: kind, Name: modulePath, Version: version, PackageURL: purl}
}

// ownModule returns the version of a module that this command is built with.
func ownModule(modulePath string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == modulePath {
			return m.Version
		}
	}
	return ""
}

func encodeSBOM(bom *cdx.BOM) ([]byte, error) {
	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return nil, fmt.Errorf("SBOM: %w", err)
	}
	return out.Bytes(), nil
}

// withSBOMs adds the SBOMs to the index.json of a layout. No name leads to them; their subject does.
func withSBOMs(index v1.ImageIndex, sboms []sbom) v1.ImageIndex {
	for _, s := range sboms {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: s.artifact})
	}
	return index
}

// artifact is a manifest with one document and a subject, as the OCI's guidance for artifacts has it.
type artifact struct {
	manifest []byte
	document v1.Layer
}

// newArtifact returns an artifact with an SBOM of an image. oras pull writes it to a file of that name.
func newArtifact(file string, document []byte, subject v1.Descriptor, created time.Time) (v1.Image, error) {
	layer := static.NewLayer(document, sbomType)
	content, err := partial.Descriptor(layer)
	if err != nil {
		return nil, err
	}
	content.Annotations = map[string]string{"org.opencontainers.image.title": file}
	a := artifact{document: layer}
	config, err := partial.ConfigLayer(&a)
	if err != nil {
		return nil, err
	}
	digest, err := config.Digest()
	if err != nil {
		return nil, err
	}
	a.manifest, err = json.Marshal(v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  sbomType,
		Config:        v1.Descriptor{MediaType: types.OCIEmptyJSON, Digest: digest, Size: 2, Data: emptyConfig},
		Layers:        []v1.Descriptor{*content},
		Subject:       &v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations:   map[string]string{"org.opencontainers.image.created": created.Format(time.RFC3339)},
	})
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(&a)
}

var emptyConfig = []byte("{}")

// These methods implement partial.CompressedImageCore.

func (a *artifact) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }
func (a *artifact) RawManifest() ([]byte, error)        { return a.manifest, nil }
func (a *artifact) RawConfigFile() ([]byte, error)      { return emptyConfig, nil }

func (a *artifact) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	if digest, err := a.document.Digest(); err != nil || digest != h {
		return nil, fmt.Errorf("the SBOM has no layer %v", h)
	}
	return a.document, nil
}
