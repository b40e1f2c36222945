package main

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"sigs.k8s.io/yaml"

	"github.com/usherproxy/usher/internal/configtree"
	"github.com/usherproxy/usher/internal/settings"
)

// exact compares settings.
var exact = cmpopts.EquateComparable(netip.Prefix{})

// TestExamplesAreSettings reads the example of each setting as an operator would copy it, in both forms.
func TestExamplesAreSettings(t *testing.T) {
	for _, group := range settings.Groups {
		for _, s := range group.Settings {
			line := s.Key + " = " + s.Example
			tree, bad := configtree.Parse("example.hcl", []byte(line))
			if bad != nil {
				t.Errorf("%s: %v", line, bad)
				continue
			}
			inHCL := wantSettings(t, line, group.Key, configtree.Plain(tree))
			if byDefault := wantSettings(t, s.Default, group.Key, defaultOf(t, s)); cmp.Equal(inHCL, byDefault, exact) {
				t.Errorf("%s is the default", line)
			}
			text, err := flowYAML(line)
			if err != nil {
				t.Fatal(err)
			}
			var fromYAML any
			if err := yaml.Unmarshal([]byte(text), &fromYAML); err != nil { // as Kubernetes does
				t.Errorf("%s: %v", text, err)
			}
			if diff := cmp.Diff(inHCL, wantSettings(t, text, group.Key, fromYAML), exact); diff != "" {
				t.Errorf("%s is not what %s is (-HCL +YAML):\n%s", text, line, diff)
			}
		}
	}
}

func defaultOf(t *testing.T, s settings.Setting) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(s.Key+": "+s.Default), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func wantSettings(t *testing.T, text, group string, keys any) settings.Settings {
	t.Helper()
	decoded, problems := settings.Decode("example", map[string]any{group: keys})
	if len(problems) > 0 {
		t.Errorf("%s: %v", text, problems)
	}
	return decoded
}

// TestWordsThatKubernetesReadsAsBooleansHaveQuotes would fail if "off" came to Usher as false.
func TestWordsThatKubernetesReadsAsBooleansHaveQuotes(t *testing.T) {
	for line, want := range map[string]string{
		`mode = "off"`: `mode: "off"`,
		`tlvs = [{ type = "0xE4", name = "yes" }]`: `tlvs: [{type: "0xE4", name: "yes"}]`,
		`trusted_hops = 1`:                         `trusted_hops: 1`,
	} {
		if got, err := flowYAML(line); err != nil || got != want {
			t.Errorf("%s is %s (%v), want %s", line, got, err, want)
		}
	}
}

func TestThePageIsCurrent(t *testing.T) {
	text, err := page()
	if err != nil {
		t.Fatal(err)
	}
	committed, err := os.ReadFile("../../docs/settings.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(committed) != text {
		t.Error(`docs/settings.md is not what "make generate" writes`)
	}
	if strings.Contains(text, "%!") {
		t.Error("the page has a bad verb")
	}
}
