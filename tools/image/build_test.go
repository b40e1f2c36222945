package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"go.uber.org/goleak"

	"github.com/usherproxy/usher/tools/image/checkout"
)

// The version of the commit that the test builds, and the commit's time.
const (
	commitTime  = checkout.Time
	testVersion = "v0.0.0-20260131220506-" // and 12 digits of the commit
)

// workDir has the two checkouts.
var workDir string

func TestMain(m *testing.M) {
	var err error
	if workDir, err = checkout.WorkDir(filepath.Join("..", ".."), "image-test"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(workDir)
		os.Exit(code)
	}))
}

// buildOfCommit is a copy of the source with one commit, and what was built from it.
type buildOfCommit struct {
	dir, commit string
}

func (c buildOfCommit) out() string     { return filepath.Join(c.dir, "dist") }
func (c buildOfCommit) version() string { return testVersion + c.commit[:12] }
func (c buildOfCommit) name() string {
	return "docker.io/usherproxy/usher:" + strings.TrimPrefix(c.version(), "v")
}

// checkouts builds the same commit in two directories, once for all tests.
var checkouts = sync.OnceValues(func() ([2]buildOfCommit, error) {
	var both [2]buildOfCommit
	for i, dir := range []string{"a", "another/and/a/longer/path"} {
		c := buildOfCommit{dir: filepath.Join(workDir, dir)}
		var err error
		if c.commit, err = checkout.Copy(filepath.Join("..", ".."), c.dir); err == nil {
			err = run(context.Background(), []string{"build", "-source", c.dir, "-out", c.out()}, io.Discard)
		}
		if err != nil {
			return both, err
		}
		both[i] = c
	}
	return both, nil
})

// built returns the first of the two checkouts.
func built(t *testing.T) buildOfCommit {
	t.Helper()
	both, err := checkouts()
	if err != nil {
		t.Fatal(err)
	}
	return both[0]
}

// files returns the sum of each file below a directory.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(dir, path))
		sums[path] = fmt.Sprintf("%x", sha256.Sum256(content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

func TestTwoBuildsOfACommitAreTheSameBytes(t *testing.T) {
	both, err := checkouts()
	if err != nil {
		t.Fatal(err)
	}
	first, second := files(t, both[0].out()), files(t, both[1].out())
	for _, name := range []string{
		"image/index.json", "image/oci-layout", "usher-image.tar",
		"usher-linux-amd64", "usher-linux-arm64", "usher-linux-amd64.cdx.json", "usher-linux-arm64.cdx.json",
	} {
		if first[name] == "" {
			t.Errorf("%s was not built", name)
		}
	}
	for name, sum := range first {
		if second[name] != sum {
			t.Errorf("%s differs: %s and %s", name, sum, second[name])
		}
	}
	if len(first) != len(second) {
		t.Errorf("%d files and %d files", len(first), len(second))
	}
}

func TestBuildReplacesTheLastOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "image")
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(dir, "blobs", "sha256", "old")
	if err := os.WriteFile(old, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeLayout(dir, imageOf(t, built(t))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("a blob of the last build is still there (%v)", err)
	}
}

// imageOf returns the image in a checkout's layout.
func imageOf(t *testing.T, c buildOfCommit) v1.ImageIndex {
	t.Helper()
	image, _ := layoutOf(t, c)
	return image
}

// layoutOf returns the image and the SBOMs in a checkout's layout.
func layoutOf(t *testing.T, c buildOfCommit) (v1.ImageIndex, []v1.Image) {
	t.Helper()
	root, err := layout.ImageIndexFromPath(filepath.Join(c.out(), layoutDir))
	if err != nil {
		t.Fatal(err)
	}
	image, sboms, err := contents(root)
	if err != nil {
		t.Fatal(err)
	}
	return image, sboms
}

// platform returns the image for an architecture.
func platform(t *testing.T, index v1.ImageIndex, arch string) v1.Image {
	t.Helper()
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(manifest.Manifests, func(d v1.Descriptor) bool {
		return d.Platform != nil && d.Platform.OS == "linux" && d.Platform.Architecture == arch
	})
	if i < 0 {
		t.Fatalf("no image for linux/%s in %+v", arch, manifest.Manifests)
	}
	image, err := index.Image(manifest.Manifests[i].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestImageIsValid(t *testing.T) {
	image := imageOf(t, built(t))
	if err := validate.Index(image); err != nil {
		t.Error(err)
	}
	manifest, err := image.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != len(architectures) {
		t.Errorf("%d manifests, want one for each of %v", len(manifest.Manifests), architectures)
	}
	for _, d := range manifest.Manifests {
		if d.ArtifactType != "" {
			t.Errorf("the image for %v is said to be an artifact of the type %s", d.Platform, d.ArtifactType)
		}
	}
}

func TestMistakesOnTheCommandLine(t *testing.T) {
	for _, tc := range []struct {
		args, epoch, want string
	}{
		{"", "", "no command; use: image build -source DIR"},
		{"biuld", "", `unknown command "biuld"; use: image build -source DIR`},
		{"build", "yesterday", "SOURCE_DATE_EPOCH=yesterday: it must be a number of seconds since 1970"},
		{"build", "-1", "SOURCE_DATE_EPOCH=-1: it must be a number of seconds since 1970"},
		{"push -out none", "", "no name to push to; use make push IMAGE=REGISTRY/NAME:TAG"},
		{"push -image usher:v1 -out none", "", `image "usher:v1": `},
		{"push -image registry.test/usher -out none", "", "use REGISTRY/NAME:TAG"},
		{"push -image registry.test/usher:v1 -out none", "", "none/image is no OCI layout: "},
	} {
		t.Setenv("SOURCE_DATE_EPOCH", tc.epoch)
		var out bytes.Buffer
		err := run(t.Context(), strings.Fields(tc.args), &out)
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("image %s: got %v, want one line with %q", tc.args, err, tc.want)
		}
	}
}

func TestSourceDateEpochWinsOverTheCommit(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	epoch, err := sourceDateEpoch()
	if err != nil {
		t.Fatal(err)
	}
	b, err := readBinary(filepath.Join(built(t).out(), "usher-linux-amd64"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := releaseOf(b, options{epoch: epoch})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.time.Unix(); got != 1700000000 {
		t.Errorf("the time of the files is %d, want 1700000000", got)
	}
}
