package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

func TestImageSaysHowItIsRun(t *testing.T) {
	c := built(t)
	for _, arch := range architectures {
		config, err := platform(t, imageOf(t, c), arch).ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(config.OS, "/", config.Architecture, " ", config.Config.User, " ", config.Config.Entrypoint,
			" ", config.Config.Cmd, " ", config.Created.Format("2006-01-02T15:04:05Z"))
		want := fmt.Sprint("linux/", arch, " 65532:65532 [/usr/local/bin/usher] [] ", commitTime)
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		for label, want := range map[string]string{
			"org.opencontainers.image.version":  c.version(),
			"org.opencontainers.image.revision": c.commit,
			"org.opencontainers.image.created":  commitTime,
			"org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.source":   "https://github.com/usherproxy/usher",
		} {
			if got := config.Config.Labels[label]; got != want {
				t.Errorf("linux/%s: label %s is %q, want %q", arch, label, got, want)
			}
		}
	}
}

// entry is a file of an image.
type entry struct {
	*tar.Header
	content []byte
}

// entries returns the files of an image, by path.
func entries(t *testing.T, image v1.Image) map[string]entry {
	t.Helper()
	content := mutate.Extract(image)
	defer content.Close()
	found := map[string]entry{}
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimSuffix(header.Name, "/")] = entry{header, text}
	}
}

func TestImageHasTheBinaryAndLittleElse(t *testing.T) {
	for _, arch := range architectures {
		got := entries(t, platform(t, imageOf(t, built(t)), arch))
		want := map[string]int64{
			"etc": 0o755, "etc/passwd": 0o644, "etc/group": 0o644,
			"etc/ssl": 0o755, "etc/ssl/certs": 0o755, "etc/ssl/certs/ca-certificates.crt": 0o644,
			"usr": 0o755, "usr/local": 0o755, "usr/local/bin": 0o755, "usr/local/bin/usher": 0o755,
			"usr/share": 0o755, "usr/share/doc": 0o755, "usr/share/doc/usher": 0o755,
			"usr/share/doc/usher/LICENSE": 0o644, "usr/share/doc/usher/THIRD-PARTY-LICENSES": 0o644,
		}
		for path, e := range got {
			if e.Mode != want[path] || e.Uid != 0 || e.Gid != 0 || e.ModTime.UTC().Format("2006-01-02T15:04:05Z") != commitTime {
				t.Errorf("linux/%s: %s has mode %o (want %o), owner %d:%d (want 0:0), time %v (want %s)",
					arch, path, e.Mode, want[path], e.Uid, e.Gid, e.ModTime.UTC(), commitTime)
			}
		}
		if len(got) != len(want) {
			t.Errorf("linux/%s: %d files, want %d", arch, len(got), len(want))
		}
		binary, err := os.ReadFile(filepath.Join(built(t).out(), "usher-linux-"+arch))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[binaryPath].content, binary) {
			t.Errorf("the binary in the image for linux/%s is not the one in dist", arch)
		}
		for path, texts := range map[string][]string{
			"LICENSE": {"Apache License"},
			"THIRD-PARTY-LICENSES": {
				"==== Go " + runtime.Version() + ": LICENSE", "==== google.golang.org/grpc v", "==== " + rootsModule + " v", "Mozilla Public License",
			},
		} {
			for _, text := range texts {
				if !bytes.Contains(got[docPath+"/"+path].content, []byte(text)) {
					t.Errorf("linux/%s: %s/%s has no %q", arch, docPath, path, text)
				}
			}
		}
	}
}

func TestBinariesAreStaticAndForTheirArchitecture(t *testing.T) {
	for _, arch := range architectures {
		b, err := readBinary(filepath.Join(built(t).out(), "usher-linux-"+arch))
		if err != nil {
			t.Fatal(err)
		}
		if got := b.setting("GOOS") + "/" + b.setting("GOARCH"); got != "linux/"+arch {
			t.Errorf("the binary for linux/%s is for %s", arch, got)
		}
		if bytes.Contains(b.content, []byte(workDir)) {
			t.Errorf("the binary for linux/%s has the directory of its build", arch)
		}
	}
	dynamic, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(dynamic)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkStatic(content); err == nil || !strings.Contains(err.Error(), "it is linked dynamically (PT_INTERP)") {
		t.Errorf("%s, which needs libraries: %v", dynamic, err)
	}
}

// The kernel starts the binary as the image's user, in a root that has nothing but the image.
func TestImageRunsAloneAndWithoutRoot(t *testing.T) {
	c, root := built(t), t.TempDir()
	image := platform(t, imageOf(t, c), runtime.GOARCH)
	extract(t, image, root)
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), config.Config.Entrypoint[0], "version")
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", config.Config.Env, &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: 65532, Gid: 65532, NoSetGroups: true}}
	if os.Geteuid() != 0 { // only root may change the root, so be root in a namespace
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 65532, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 65532, HostID: os.Getegid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, out.Bytes())
	}
	want := fmt.Sprintf("usher %s (%s, %s, linux/%s)\n", c.version(), c.commit, runtime.Version(), runtime.GOARCH)
	if out.String() != want {
		t.Errorf("got  %s\nwant %s", out.String(), want)
	}
}

// extract writes the files of an image below a directory, which becomes a root that any user may enter.
func extract(t *testing.T, image v1.Image, root string) {
	t.Helper()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	found := entries(t, image)
	for _, path := range slices.Sorted(maps.Keys(found)) {
		e, target := found[path], filepath.Join(root, path)
		var err error
		if e.Typeflag == tar.TypeDir {
			err = os.Mkdir(target, e.FileInfo().Mode())
		} else {
			err = os.WriteFile(target, e.content, e.FileInfo().Mode())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestImageHasTheAuthoritiesAndTheUser(t *testing.T) {
	found := entries(t, platform(t, imageOf(t, built(t)), "amd64"))
	roots := 0
	for rest := found[rootsPath].content; ; roots++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if c, err := x509.ParseCertificate(block.Bytes); err != nil || !c.IsCA {
			t.Errorf("authority %d: %v", roots, err)
		}
	}
	if roots < 100 {
		t.Errorf("%d certificate authorities, want the 100 and more that Mozilla trusts", roots)
	}
	if users := string(found["etc/passwd"].content); !strings.Contains(users, "nonroot:x:65532:65532:") {
		t.Errorf("/etc/passwd: %s", users)
	}
}
