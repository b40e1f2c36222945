//go:build kubernetes

package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// containerInit is the name that the test's binary is started with to become a
// container.
const containerInit = "container-init"

// mount is a directory or file of this machine that a container sees.
type mount struct {
	Source   string
	Target   string // in the container
	ReadOnly bool
}

// containerProcess says what a container's process sees and runs.
type containerProcess struct {
	Root   string // an empty directory: the container's file system is built there
	Mounts []mount
	Args   []string
	Env    []string
	Dir    string // working directory
}

// Init turns this process into a container if it was started as one. The main
// function of a test binary calls it before anything else.
func Init() {
	switch filepath.Base(os.Args[0]) {
	case containerInit:
		err := enterContainer(os.Args[1])
		fmt.Fprintln(os.Stderr, "start the container:", err)
		os.Exit(128)
	case httpEcho:
		os.Exit(serveEcho(os.Args[1:]))
	}
}

// enterContainer builds the container's file system, makes it the root, and
// replaces this process by the container's. The process already is in new mount
// and process namespaces; both end with it, and so do the mounts.
func enterContainer(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var p containerProcess
	if err := json.Unmarshal(text, &p); err != nil {
		return err
	}
	if err := p.buildRoot(); err != nil {
		return err
	}
	for _, m := range p.Mounts {
		if err := p.bind(m); err != nil {
			return err
		}
	}
	if err := unix.Chroot(p.Root); err != nil {
		return err
	}
	if err := os.Chdir(p.Dir); err != nil {
		return err
	}
	return p.exec()
}

// buildRoot makes a file system in memory with the programs and devices of this
// machine, as an image with a shell has them.
func (p containerProcess) buildRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to this container: %w", err)
	}
	if err := unix.Mount("tmpfs", p.Root, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	for _, directory := range []string{"etc", "proc", "run", "tmp", "var"} {
		if err := os.Mkdir(p.path(directory), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(p.path("tmp"), 0o1777); err != nil {
		return err
	}
	links := map[string]string{
		"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64",
		"var/run": "../run", "etc/hosts": hostsDirectory + "/hosts",
	}
	for link, target := range links {
		if err := os.Symlink(target, p.path(link)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(p.path("etc/nsswitch.conf"), []byte("hosts: files\n"), 0o644); err != nil {
		return err
	}
	for _, m := range []mount{{"/usr", "/usr", true}, {"/dev", "/dev", false}, {"/sys", "/sys", true}} {
		if err := p.bind(m); err != nil {
			return err
		}
	}
	if err := unix.Mount("tmpfs", p.path(binDirectory), "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount %s: %w", binDirectory, err)
	}
	return unix.Mount("proc", p.path("proc"), "proc", 0, "")
}

func (p containerProcess) path(inContainer string) string {
	return filepath.Join(p.Root, inContainer)
}

// bind shows a directory or file of this machine in the container.
func (p containerProcess) bind(m mount) error {
	target := p.path(m.Target)
	info, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	if err := makeMountPoint(target, info.IsDir()); err != nil {
		return err
	}
	if err := unix.Mount(m.Source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w", m.Source, m.Target, err)
	}
	if !m.ReadOnly {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount %s read-only: %w", m.Target, err)
	}
	return nil
}

func makeMountPoint(path string, directory bool) error {
	if directory {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return file.Close()
}

// exec replaces this process. Its number in the container stays 1.
func (p containerProcess) exec() error {
	os.Clearenv()
	if err := os.Setenv("PATH", binDirectory+":/usr/sbin:/usr/bin"); err != nil {
		return err
	}
	path, err := exec.LookPath(p.Args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, p.Args, append(os.Environ(), p.Env...))
}
