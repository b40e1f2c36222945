package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

// groups are those of https://keepachangelog.com, in the order of the changelog.
var groups = []string{"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}

// withoutHeading is the group of what a fragment says before its first heading.
const withoutHeading = "Changed"

// fragments returns what the files of changes/ say by group, and these files. README.md is not one of them.
func fragments(source string) (byGroup map[string][]string, names []string, err error) {
	names, err = filepath.Glob(filepath.Join(source, "changes", "*.md"))
	if err != nil {
		return nil, nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return filepath.Base(name) == "README.md" })
	byGroup = map[string][]string{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, nil, err
		}
		if err := addFragment(byGroup, string(text)); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return byGroup, names, nil
}

// addFragment adds what a fragment says to its groups.
func addFragment(byGroup map[string][]string, text string) error {
	group, body := withoutHeading, ""
	add := func() {
		if body = strings.TrimSpace(body); body != "" {
			byGroup[group] = append(byGroup[group], strings.ReplaceAll(body, "](../", "]("))
		}
		body = ""
	}
	isCode := false
	for line := range strings.Lines(text) {
		isCode = isCode != strings.HasPrefix(line, "```")
		if !strings.HasPrefix(line, "#") || isCode {
			body += line
			continue
		}
		add()
		group = strings.TrimSpace(strings.TrimPrefix(line, "### "))
		if !slices.Contains(groups, group) {
			return fmt.Errorf("%q is no heading of a change; use one of ### %s", strings.TrimSpace(line), strings.Join(groups, ", ### "))
		}
	}
	add()
	return nil
}

// section is what the changelog says of one version.
type section struct{ number, date, text string }

var (
	sectionHeading = regexp.MustCompile(`(?m)^## \[([^\]]+)\] - (\d{4}-\d{2}-\d{2})\n`)
	versionLink    = regexp.MustCompile(`(?m)^\[[^\]]+\]: `)
)

// changelog is CHANGELOG.md.
type changelog struct {
	head     string // before the first version
	sections []section
}

// readChangelog reads CHANGELOG.md, and returns an error if it is not as keepachangelog.com has it.
func readChangelog(source string) (changelog, error) {
	content, err := os.ReadFile(filepath.Join(source, "CHANGELOG.md"))
	if err != nil {
		return changelog{}, err
	}
	text := string(content)
	if at := versionLink.FindStringIndex(text); at != nil {
		text = text[:at[0]]
	}
	found := sectionHeading.FindAllStringSubmatchIndex(text, -1)
	c := changelog{head: text}
	for i, at := range found {
		end := len(text)
		if i+1 < len(found) {
			end = found[i+1][0]
		}
		c.sections = append(c.sections, section{number: text[at[2]:at[3]], date: text[at[4]:at[5]], text: strings.TrimSpace(text[at[1]:end])})
	}
	if len(found) > 0 {
		c.head = text[:found[0][0]]
	}
	return c, c.check()
}

// check returns an error if versions or groups are unknown or not in their order.
func (c changelog) check() error {
	if !strings.HasPrefix(c.head, "# Changelog\n") || strings.Contains(c.head, "\n#") {
		return errors.New(`CHANGELOG.md: it begins with "# Changelog", and then has headings such as "## [1.2.3] - 2026-11-30"`)
	}
	for i, s := range c.sections {
		if checkVersion("v"+s.number) != nil {
			return fmt.Errorf("CHANGELOG.md: %s is no semantic version", s.number)
		}
		if i > 0 && (semver.Compare("v"+c.sections[i-1].number, "v"+s.number) <= 0 || c.sections[i-1].date < s.date) {
			return fmt.Errorf("CHANGELOG.md: %s (%s) comes after %s (%s); the newest is the first", s.number, s.date, c.sections[i-1].number, c.sections[i-1].date)
		}
		if err := s.check(); err != nil {
			return fmt.Errorf("CHANGELOG.md: %s: %w", s.number, err)
		}
	}
	return nil
}

// check returns an error if the section is empty, or its groups are unknown or not in their order.
func (s section) check() error {
	if _, err := time.Parse(time.DateOnly, s.date); err != nil {
		return err
	}
	last := -1
	for line := range strings.Lines(s.text) {
		if group, ok := strings.CutPrefix(strings.TrimSpace(line), "### "); ok {
			i := slices.Index(groups, group)
			if i <= last {
				return fmt.Errorf("the heading %q: each of %v at most once, in this order", group, groups)
			}
			last = i
		}
	}
	if last < 0 || !strings.HasPrefix(s.text, "### ") {
		return errors.New("it has to begin with a heading such as ### Added")
	}
	return nil
}

// String returns the content of CHANGELOG.md.
func (c changelog) String() string {
	var out, links strings.Builder
	out.WriteString(strings.TrimSpace(c.head) + "\n")
	for _, s := range c.sections {
		fmt.Fprintf(&out, "\n## [%s] - %s\n\n%s\n", s.number, s.date, s.text)
		fmt.Fprintf(&links, "[%s]: https://github.com/usherproxy/usher/releases/tag/v%[1]s\n", s.number)
	}
	if links.Len() > 0 {
		out.WriteString("\n" + links.String())
	}
	return out.String()
}

// fold makes the fragments of changes/ a section of CHANGELOG.md, and removes them.
func fold(source, version, date string) error {
	if err := checkVersion(version); err != nil {
		return err
	}
	c, err := readChangelog(source)
	if err != nil {
		return err
	}
	byGroup, names, err := fragments(source)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return errors.New("changes/ has nothing to release")
	}
	s := section{number: strings.TrimPrefix(version, "v"), date: date}
	for _, group := range groups {
		if texts := byGroup[group]; len(texts) > 0 {
			s.text += "### " + group + "\n\n" + strings.Join(texts, "\n\n") + "\n\n"
		}
	}
	s.text = strings.TrimSpace(s.text)
	c.sections = slices.Insert(c.sections, 0, s)
	if err := c.check(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(source, "CHANGELOG.md"), []byte(c.String()), 0o644); err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// notes returns what the changelog says of a version.
func notes(source, version string) (string, error) {
	c, err := readChangelog(source)
	if err != nil {
		return "", err
	}
	for _, s := range c.sections {
		if "v"+s.number == version {
			return s.text + "\n", nil
		}
	}
	return "", fmt.Errorf("CHANGELOG.md has no section for %q; run make changelog VERSION=%s", version, version)
}
