package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// chartVersion is a line of Chart.yaml with the version of the chart or of Usher.
var chartVersion = regexp.MustCompile(`(?m)^(version|appVersion): .*$`)

// writeChart writes the Helm chart with the version of the release, as "helm package" names it, and returns its name.
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
	i := slices.IndexFunc(files, func(f file) bool { return f.name == "Chart.yaml" })
	if i < 0 || len(chartVersion.FindAll(files[i].content, -1)) != 2 {
		return "", fmt.Errorf("%s has no Chart.yaml with the lines version and appVersion", dir)
	}
	files[i].content = chartVersion.ReplaceAll(files[i].content, []byte("${1}: "+r.number()))
	name := "usher-" + r.number() + ".tgz"
	return name, writeArchive(filepath.Join(r.out, name), "usher", files, r.modified)
}
