package main

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// product is Usher for one platform.
type product struct {
	release
	system, arch string
	notices      []byte // the licenses of the modules in the binary
	manual       []file // pages and completions, named as in the archive
}

// write writes the archive, the SBOM and, for Linux, the packages. It returns their names.
func (p product) write() ([]string, error) {
	base := "usher_" + p.number() + "_" + p.system + "_" + p.arch
	sbom, archive := base+".cdx.json", base+".tar.gz"
	if err := os.Rename(p.binary()+".cdx.json", filepath.Join(p.out, sbom)); err != nil {
		return nil, err
	}
	files, err := p.files()
	if err != nil {
		return nil, err
	}
	if err := writeArchive(filepath.Join(p.out, archive), base, files, p.modified); err != nil {
		return nil, err
	}
	names := []string{sbom, archive}
	if p.system != "linux" {
		return names, nil
	}
	packages, err := p.writePackages()
	return append(names, packages...), err
}

// binary returns the file with the binary.
func (p product) binary() string { return filepath.Join(p.work, "usher-"+p.system+"-"+p.arch) }

// files returns the content of the archive.
func (p product) files() ([]file, error) {
	binary, err := readFile(p.binary(), "usher")
	if err != nil {
		return nil, err
	}
	binary.mode = 0o755
	files := slices.Concat([]file{binary, {name: "THIRD-PARTY-LICENSES", content: p.notices}}, p.manual)
	for _, name := range []string{"LICENSE", "README.md", "CHANGELOG.md", "docs/usher-policy.hcl"} {
		f, err := readFile(filepath.Join(p.source, name), path.Base(name))
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	if p.system == "linux" {
		for _, name := range []string{"usher.service", "usher.default", "usher.hcl"} {
			f, err := readFile(p.packaged(name), "systemd/"+name)
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
	}
	return files, nil
}

// packaged returns a file of the source that packages have.
func (r release) packaged(name string) string {
	return filepath.Join(r.source, "tools", "release", "package", name)
}

// manual returns the manual pages and completions.
func (r release) manual() ([]file, error) {
	var files []file
	for _, dir := range []string{"man1", "completions"} {
		entries, err := os.ReadDir(filepath.Join(r.work, dir))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			f, err := readFile(filepath.Join(r.work, dir, e.Name()), strings.Replace(dir, "man1", "man/man1", 1)+"/"+e.Name())
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
	}
	return files, nil
}
