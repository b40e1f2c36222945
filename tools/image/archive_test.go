package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// docker load reads manifest.json: for each entry the config, the layers with the sums that the config has, and the
// names, of which the last one wins.
func TestDockerArchiveHasANameForEachArchitecture(t *testing.T) {
	c := built(t)
	archive := filepath.Join(c.out(), archiveFile)
	manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(archive) })
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range manifest {
		names = append(names, m.RepoTags...)
	}
	plain := c.name()
	if want := []string{plain + "-amd64", plain, plain + "-arm64"}; !slices.Equal(names, want) {
		t.Errorf("got  %v\nwant %v", names, want)
	}
	for suffix, arch := range map[string]string{"": "amd64", "-amd64": "amd64", "-arm64": "arm64"} {
		tag, err := name.NewTag(plain + suffix)
		if err != nil {
			t.Fatal(err)
		}
		image, err := tarball.ImageFromPath(archive, &tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(image); err != nil {
			t.Errorf("%s: %v", tag, err)
		}
		if got, want := configName(t, image), configName(t, platform(t, imageOf(t, c), arch)); got != want {
			t.Errorf("%s leads to the image %s, want %s, that for linux/%s", tag, got, want, arch)
		}
	}
}

// configName returns Docker's ID of an image.
func configName(t *testing.T, image v1.Image) v1.Hash {
	t.Helper()
	digest, err := image.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// containerd starts a containerd whose state is in a directory, and returns ctr for it.
func containerd(t *testing.T) func(args ...string) string {
	t.Helper()
	dir := t.TempDir()
	socket, config := filepath.Join(dir, "sock"), filepath.Join(dir, "config.toml")
	err := os.WriteFile(config, fmt.Appendf(nil, `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "containerd", "--config", config)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("containerd: %v; make debian installs it", err)
	}
	booted, ended := make(chan struct{}), make(chan string, 1)
	go func() {
		var text strings.Builder
		for lines := bufio.NewScanner(log); lines.Scan(); {
			fmt.Fprintln(&text, lines.Text())
			if strings.Contains(lines.Text(), "successfully booted") {
				close(booted)
			}
		}
		ended <- text.String()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		_ = cmd.Wait()
	})
	select {
	case <-booted:
	case text := <-ended:
		ended <- text
		t.Fatalf("containerd ended: %s", text)
	}
	return func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "ctr", append([]string{"--address", socket}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("ctr %v: %v: %s", args, err, out)
		}
		return string(out)
	}
}

// The flags are those of kind load image-archive.
func TestContainerdImportsAllArchitecturesUnderOneName(t *testing.T) {
	c, ctr := built(t), containerd(t)
	ctr("images", "import", "--all-platforms", "--digests", "--snapshotter", "native", filepath.Join(c.out(), archiveFile))
	digest, err := imageOf(t, c).Digest()
	if err != nil {
		t.Fatal(err)
	}
	want := c.name() + " application/vnd.oci.image.index.v1+json " + digest.String() + " linux/amd64,linux/arm64"
	list := ctr("images", "list")
	if !slices.ContainsFunc(strings.Split(list, "\n"), func(line string) bool {
		f := strings.Fields(line) // name, type, digest, size, unit, platforms, labels
		return len(f) > 5 && strings.Join([]string{f[0], f[1], f[2], f[5]}, " ") == want
	}) {
		t.Errorf("got\n%s\nwant %s", list, want)
	}
	if check := ctr("images", "check", "--snapshotter", "native"); !strings.Contains(check, "complete (3/3)") {
		t.Errorf("the image is not complete:\n%s", check)
	}
}
