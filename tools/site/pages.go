package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// group is a part of the menu.
type group struct {
	Group string   `yaml:"group"` // its title
	Pages []string `yaml:"pages"` // files, relative to docs/
}

func readNavigation(file string) ([]group, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var groups []group
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&groups); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return groups, nil
}

// page is one page of the site.
type page struct {
	source string // its file, relative to the repository: docs/settings.md
	name   string // its name on the site: settings; empty for the home page
	group  string
	title  string
	body   []byte // Markdown, without the title
}

// readPages returns the pages of the navigation, in its order. Every page of docs/ has to be among them.
func readPages(root string, groups []group) ([]page, error) {
	var pages []page
	files := map[string]string{} // by name
	for _, g := range groups {
		for _, file := range g.Pages {
			p, err := readPage(root, path.Join("docs", file))
			if err != nil {
				return nil, fmt.Errorf("docs/navigation.yaml: %w", err)
			}
			if other, taken := files[p.name]; taken {
				return nil, fmt.Errorf("docs/navigation.yaml: %s and %s would be the same page", other, p.source)
			}
			files[p.name] = p.source
			p.group = g.Group
			pages = append(pages, p)
		}
	}
	all, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		return nil, err
	}
	for _, file := range all {
		source := "docs/" + filepath.Base(file)
		if !slices.ContainsFunc(pages, func(p page) bool { return p.source == source }) {
			return nil, fmt.Errorf("%s is not in docs/navigation.yaml: add it to a group", source)
		}
	}
	return pages, nil
}

func readPage(root, source string) (page, error) {
	text, err := os.ReadFile(filepath.Join(root, source))
	if err != nil {
		return page{}, err
	}
	first, body, _ := bytes.Cut(text, []byte("\n"))
	title, isTitle := strings.CutPrefix(string(first), "# ")
	if !isTitle {
		return page{}, fmt.Errorf("%s has to begin with its title: # Title", source)
	}
	return page{source: source, name: pageName(source, title), title: title, body: body}, nil
}

// pageName is that of the file, or of the title if the file is not in docs/: SECURITY.md is not docs/security.md.
func pageName(source, title string) string {
	switch file, isDoc := strings.CutPrefix(source, "docs/"); {
	case !isDoc:
		return strings.ReplaceAll(strings.ToLower(title), " ", "-")
	case file == "index.md":
		return ""
	default:
		return strings.TrimSuffix(file, ".md")
	}
}

// writePages writes the pages with what Hugo wants to know of each, and the data for menu and links.
func writePages(dir string, pages []page, repository string) error {
	type frontMatter struct {
		Title  string            `json:"title"`
		Weight int               `json:"weight"`
		Params map[string]string `json:"params"`
	}
	names := map[string]string{} // by source
	type entry struct {
		Group string   `json:"group"`
		Pages []string `json:"pages"`
	}
	var menu []entry
	for i, p := range pages {
		names[p.source] = "/" + p.name
		if i == 0 || pages[i-1].group != p.group {
			menu = append(menu, entry{Group: p.group})
		}
		last := &menu[len(menu)-1]
		last.Pages = append(last.Pages, "/"+p.name)
		head, err := json.Marshal(frontMatter{p.title, i + 1, map[string]string{"source": p.source}})
		if err != nil {
			return err
		}
		file := p.name + ".md"
		if p.name == "" {
			file = "_index.md"
		}
		if err := write(filepath.Join(dir, "content", file), slices.Concat(head, []byte("\n"), p.body)); err != nil {
			return err
		}
	}
	for file, data := range map[string]any{
		"data/pages.json": names, "data/navigation.json": menu, "config/_default/params.json": map[string]string{"repository": repository},
	} {
		text, err := json.Marshal(data)
		if err != nil {
			return err
		}
		if err := write(filepath.Join(dir, file), text); err != nil {
			return err
		}
	}
	return nil
}

func write(file string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o644)
}

// repository returns the address of the repository, which is the path of its module.
func repository(root string) (string, error) {
	text, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	return "https://" + strings.TrimPrefix(first, "module "), nil
}
