//go:build e2e

package main

import (
	"fmt"
	"os"
	"strings"
)

// The lines of a Markdown file between which the bench puts its table.
const (
	beginMark = "<!-- bench: begin -->"
	endMark   = "<!-- bench: end -->"
)

// insert puts the rows, under a preface, between the marks of a Markdown file.
// What stands there already is replaced.
func (r *report) insert(path, preface string) error {
	before, after, err := placeIn(path)
	if err != nil {
		return err
	}
	table := "```text\n" + strings.TrimSpace(preface) + "\n```\n\n" + r.markdown()
	return os.WriteFile(path, []byte(before+beginMark+"\n"+table+endMark+"\n"+after), 0o644)
}

// placeIn returns what stands before and after the place for the table.
func placeIn(path string) (before, after string, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", "", err
	}
	before, rest, begun := strings.Cut(string(content), beginMark+"\n")
	_, after, ended := strings.Cut(rest, endMark+"\n")
	if !begun || !ended {
		return "", "", fmt.Errorf("%s: a line %s with a line %s after it is needed to put the table between", path, beginMark, endMark)
	}
	return before, after, nil
}

// markdown returns the rows as tables: one for each gateway, whose rows have the
// beginning of their names in common, and one for the others.
func (r *report) markdown() string {
	var gateways []string
	tables := map[string]*strings.Builder{}
	for _, at := range r.rows {
		of, what, ok := strings.Cut(at.what, ": ")
		if !ok || !strings.Contains(of, " × ") {
			of, what = "", at.what
		}
		table := tables[of]
		if table == nil {
			table = &strings.Builder{}
			tables[of], gateways = table, append(gateways, of)
			fmt.Fprintf(table, "%s\n\n| | Usher | Consul | floor | Usher/Consul | Usher/floor | bar |\n|---|---:|---:|---:|---:|---:|---|\n", headingOf(of))
		}
		c, perConsul, perFloor := at.medians()
		fmt.Fprintf(table, "| %s | %s | %s | %s | %s | %s | %s |\n", what,
			number(c.usher, at.unit), number(c.consul, at.unit), number(c.floor, at.unit),
			fraction(perConsul), number(perFloor, times), strings.ReplaceAll(at.barResults(), "NOT MET", "**not met**"))
	}
	var b strings.Builder
	for _, of := range gateways {
		b.WriteString(tables[of].String() + "\n")
	}
	return b.String()
}

// headingOf returns the heading of a gateway's rows.
func headingOf(gateway string) string {
	services, envoys, ok := strings.Cut(gateway, " × ")
	if !ok {
		return "### Growth"
	}
	plural := "s"
	if envoys == "1" {
		plural = ""
	}
	return fmt.Sprintf("### %s services, %s Envoy%s", services, envoys, plural)
}
