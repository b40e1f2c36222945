package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// decodeSBOM reads an SBOM as a scanner does.
func decodeSBOM(t *testing.T, document []byte) *cdx.BOM {
	t.Helper()
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(document), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	return &bom
}

func TestSBOMListsEveryModuleOfTheBinary(t *testing.T) {
	c := built(t)
	for _, arch := range architectures {
		document, err := os.ReadFile(filepath.Join(c.out(), sbomFile("linux", arch)))
		if err != nil {
			t.Fatal(err)
		}
		bom := decodeSBOM(t, document)
		b, err := readBinary(filepath.Join(c.out(), "usher-linux-"+arch))
		if err != nil {
			t.Fatal(err)
		}
		usher := bom.Metadata.Component
		if want := "pkg:golang/github.com/usherproxy/usher@" + c.version(); usher.PackageURL != want {
			t.Errorf("linux/%s: got %s, want %s", arch, usher.PackageURL, want)
		}
		sum := sha256.Sum256(b.content)
		if got := (*usher.Hashes)[0]; got.Value != hex.EncodeToString(sum[:]) {
			t.Errorf("linux/%s: the SBOM is of another binary: %v, want %x", arch, got, sum)
		}
		var versions []string
		for _, component := range *bom.Components {
			versions = append(versions, component.Name+"@"+component.Version)
		}
		if ownModule(rootsModule) == "" {
			t.Error("the version of the certificate authorities is unknown")
		}
		want := []string{"stdlib@" + strings.TrimPrefix(runtime.Version(), "go"), rootsModule + "@" + ownModule(rootsModule)}
		for _, m := range b.info.Deps {
			want = append(want, m.Path+"@"+m.Version)
		}
		slices.Sort(versions)
		slices.Sort(want)
		if !slices.Equal(versions, want) {
			t.Errorf("linux/%s:\ngot  %v\nwant %v", arch, versions, want)
		}
	}
}

// TestSBOMOfABinary compares an SBOM with what `go version -m` says about its binary.
func TestSBOMOfABinary(t *testing.T) {
	file := filepath.Join(built(t).out(), "usher-linux-"+runtime.GOARCH)
	var document bytes.Buffer
	if err := run(t.Context(), []string{"sbom", file}, &document); err != nil {
		t.Fatal(err)
	}
	recorded, err := exec.CommandContext(t.Context(), "go", "version", "-m", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"stdlib@" + strings.TrimPrefix(runtime.Version(), "go")}
	for line := range strings.Lines(string(recorded)) {
		if fields := strings.Fields(line); fields[0] == "dep" {
			want = append(want, fields[1]+"@"+fields[2])
		}
	}
	var got []string
	for _, component := range *decodeSBOM(t, document.Bytes()).Components {
		got = append(got, component.Name+"@"+component.Version)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestPackageURLsAreEscaped(t *testing.T) {
	for _, tc := range []struct{ path, version, want string }{
		{"stdlib", "1.26.8", "pkg:golang/stdlib@1.26.8"},
		{"k8s.io/api", "v0.36.6", "pkg:golang/k8s.io/api@v0.36.6"},
		{"github.com/docker/cli", "v29.7.2+incompatible", "pkg:golang/github.com/docker/cli@v29.7.2%2Bincompatible"},
	} {
		if got := module(cdx.ComponentTypeLibrary, tc.path, tc.version).PackageURL; got != tc.want {
			t.Errorf("got %s, want %s", got, tc.want)
		}
	}
}

func TestLayoutHasAnSBOMForEachImage(t *testing.T) {
	c := built(t)
	image, sboms := layoutOf(t, c)
	if len(sboms) != len(architectures) {
		t.Fatalf("%d SBOMs, want %d", len(sboms), len(architectures))
	}
	for i, arch := range architectures {
		checkSBOM(t, c, platform(t, image, arch), arch, sboms[i])
	}
}

// checkSBOM compares an artifact with the image that it is about and the file in dist.
func checkSBOM(t *testing.T, c buildOfCommit, image v1.Image, arch string, artifact v1.Image) {
	t.Helper()
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := artifact.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if manifest.Subject == nil || manifest.Subject.Digest != digest || manifest.ArtifactType != "application/vnd.cyclonedx+json" {
		t.Errorf("linux/%s: an artifact of the type %s about %v, want an SBOM about %s", arch, manifest.ArtifactType, manifest.Subject, digest)
	}
	layers, err := artifact.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, want 1 (%v)", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	got, err := io.ReadAll(content)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(c.out(), sbomFile("linux", arch)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the SBOM of linux/%s differs from the file %s", arch, sbomFile("linux", arch))
	}
}
