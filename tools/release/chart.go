package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// chartVersion is a line of Chart.yaml with the version of the chart or of Usher.
var chartVersion = regexp.MustCompile(`(?m)^(version|appVersion): (.*)$`)

// writeChart writes the Helm chart, as "helm package" names it, and returns its name.
func (r release) writeChart() (string, error) {
	dir := filepath.Join(r.source, "charts", "usher")
	var files []file
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := readFile(filepath.Join(dir, name), name)
		files = append(files, f)
		return err
	})
	if err != nil {
		return "", err
	}
	name := "usher-" + r.number() + ".tgz"
	return name, writeArchive(filepath.Join(r.out, name), "usher", files, r.modified)
}

// checkChart returns an error if the chart in the source has another version than the release: who installs from the source
// has to get the same.
func (o options) checkChart() error {
	path := filepath.Join(o.source, "charts", "usher", "Chart.yaml")
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	lines := chartVersion.FindAllStringSubmatch(string(content), -1)
	if len(lines) != 2 {
		return fmt.Errorf("%s: it needs one line version and one line appVersion", path)
	}
	for _, line := range lines {
		if line[2] != o.number() {
			return fmt.Errorf("%s: %s is %s; set it to %s, and run make generate", path, line[1], line[2], o.number())
		}
	}
	return nil
}
