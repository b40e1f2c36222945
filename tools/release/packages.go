package main

import (
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // the packagers register themselves
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

// writePackages writes the packages for Linux, and returns their names.
func (p product) writePackages() ([]string, error) {
	var names []string
	for _, kind := range []string{"deb", "rpm"} {
		name, err := p.writePackage(kind)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

// writePackage writes a deb or an rpm, and returns its name.
func (p product) writePackage(kind string) (string, error) {
	contents, err := p.contents()
	if err != nil {
		return "", err
	}
	info := p.info(contents)
	if kind == "rpm" { // the package that has useradd is named differently in each distribution
		info.Depends = []string{"/usr/sbin/useradd"}
	}
	if err := nfpm.PrepareForPackager(info, kind); err != nil {
		return "", err
	}
	packager, err := nfpm.Get(kind)
	if err != nil {
		return "", err
	}
	// Packages of a pre-release have "~" in their names, and GitHub would replace it.
	name := strings.ReplaceAll(packager.ConventionalFileName(info), "~", ".")
	out, err := os.Create(filepath.Join(p.out, name))
	if err != nil {
		return "", err
	}
	if err := packager.Package(info, out); err != nil {
		out.Close()
		return "", err
	}
	return name, out.Close()
}

// maintainer has the form that Debian's policy asks for (5.6.2). The project has no mailbox.
const maintainer = "The Usher authors <usherproxy@users.noreply.github.com>"

// info describes a package. Packagers change it and its contents.
func (p product) info(contents files.Contents) *nfpm.Info {
	return nfpm.WithDefaults(&nfpm.Info{
		Name:     "usher",
		Arch:     p.arch,
		Platform: "linux",
		Version:  p.version,
		Release:  "1",
		Section:  "net",
		Priority: "optional",
		Description: "Envoy control plane for Consul ingress gateways, with PROXY protocol\n" +
			"Usher serves the same resources as Consul's own xDS serves an ingress gateway, plus the\n" +
			"proxy_protocol listener filter, a client address that clients cannot forge, and better access logs.",
		Maintainer: maintainer,
		Vendor:     "The Usher authors",
		Homepage:   "https://github.com/usherproxy/usher",
		License:    "Apache-2.0",
		MTime:      p.modified,
		Overridables: nfpm.Overridables{
			Suggests: []string{"consul"},
			Contents: contents,
			Scripts: nfpm.Scripts{
				PreInstall: p.packaged("preinstall.sh"), PostInstall: p.packaged("postinstall.sh"),
				PreRemove: p.packaged("preremove.sh"), PostRemove: p.packaged("postremove.sh"),
			},
			Deb: nfpm.Deb{
				Predepends:  []string{"passwd"}, // useradd
				Compression: "gzip:6",           // the best, 9, takes three times as long to save 0.4 %
			},
			RPM: nfpm.RPM{BuildHost: "localhost", Group: "System Environment/Daemons", Packager: maintainer},
		},
		DisableGlobbing: true,
	})
}

// contents lists the files of a package. Those of the user usher are so by name: it exists before they are unpacked.
func (p product) contents() (files.Contents, error) {
	c := contents{product: p}
	c.add(p.binary(), "/usr/bin/usher", 0o755)
	c.add(p.packaged("usher.service"), "/usr/lib/systemd/system/usher.service", 0o644)
	c.addConfig(p.packaged("usher.hcl"), "/etc/usher/usher.hcl", "usher")
	c.addConfig(p.packaged("usher.default"), "/etc/default/usher", "root")
	c.addDirectory("/etc/usher", "root", 0o750)
	c.addDirectory("/var/lib/usher", "usher", 0o700)
	c.addGenerated(file{name: "THIRD-PARTY-LICENSES", content: p.notices}, "/usr/share/doc/usher")
	c.add(filepath.Join(p.source, "LICENSE"), "/usr/share/doc/usher/copyright", 0o644)
	c.add(filepath.Join(p.source, "docs", "usher-policy.hcl"), "/usr/share/usher/usher-policy.hcl", 0o644)
	c.add(filepath.Join(p.source, "README.md"), "/usr/share/doc/usher/README.md", 0o644)
	c.add(filepath.Join(p.source, "CHANGELOG.md"), "/usr/share/doc/usher/CHANGELOG.md", 0o644)
	for _, f := range p.manual {
		c.addManual(f)
	}
	return c.list, c.err
}

// contents collects the files of a package.
type contents struct {
	product product
	list    files.Contents
	err     error // the first one
}

func (c *contents) add(source, destination string, mode os.FileMode) {
	c.list = append(c.list, &files.Content{
		Source: source, Destination: destination,
		FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: c.product.modified},
	})
}

// addConfig adds a file that keeps what an administrator has changed. The group may read it.
func (c *contents) addConfig(source, destination, group string) {
	c.add(source, destination, 0o640)
	last := c.list[len(c.list)-1]
	last.Type, last.FileInfo.Group = files.TypeConfigNoReplace, group
}

// addDirectory adds a directory of the group usher.
func (c *contents) addDirectory(destination, owner string, mode os.FileMode) {
	c.list = append(c.list, &files.Content{
		Destination: destination, Type: files.TypeDir,
		FileInfo: &files.ContentFileInfo{Owner: owner, Group: "usher", Mode: mode, MTime: c.product.modified},
	})
}

// addGenerated adds a file that is made for the package, compressed.
func (c *contents) addGenerated(f file, dir string) {
	zipped, err := f.compressed()
	if err == nil {
		source := filepath.Join(c.product.work, "package-"+path.Base(zipped.name))
		err = os.WriteFile(source, zipped.content, 0o644)
		c.add(source, dir+"/"+path.Base(zipped.name), 0o644)
	}
	if c.err == nil {
		c.err = err
	}
}

// completionPaths are where shells look for what completes the command usher. Zsh has two directories: Debian's for
// packages, and that of everyone else.
var completionPaths = map[string][]string{
	"completions/usher.bash": {"/usr/share/bash-completion/completions/usher"},
	"completions/_usher":     {"/usr/share/zsh/vendor-completions/_usher", "/usr/share/zsh/site-functions/_usher"},
	"completions/usher.fish": {"/usr/share/fish/vendor_completions.d/usher.fish"},
}

// addManual adds a manual page or a completion.
func (c *contents) addManual(f file) {
	if strings.HasPrefix(f.name, "man/") {
		c.addGenerated(f, "/usr/share/"+path.Dir(f.name))
		return
	}
	for _, destination := range completionPaths[f.name] {
		c.add(filepath.Join(c.product.work, f.name), destination, 0o644)
	}
}
