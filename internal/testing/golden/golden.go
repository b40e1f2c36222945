// Package golden runs tests whose question and answer are files: <case>.in.yaml
// holds everything that goes in. What comes out is in the directory <case>.out, one
// file for each part of the answer, so that a change is seen where it is.
//
//	go test ./listeners -update
//
// writes the answers, and deletes those without a question and parts that are no
// longer there; without the flag, a different answer, a missing one and one that is
// left over are failures.
package golden

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// Updating reports whether the flag -update is set.
func Updating() bool { return *update }

const (
	inSuffix   = ".in.yaml"
	outSuffix  = ".out"
	partSuffix = ".yaml"
)

// Run runs a subtest for every case in dir: answer gets the content of
// <case>.in.yaml. Each part that it returns is compared, as YAML (see YAML), with
// the file <case>.out/<part>.yaml.
func Run(t *testing.T, dir string, answer func(t *testing.T, in []byte) map[string]any) {
	t.Helper()
	for _, name := range Cases(t, dir) {
		t.Run(name, func(t *testing.T) {
			parts := map[string][]byte{}
			for part, value := range answer(t, Input(t, dir, name)) {
				got, err := YAML(value)
				if err != nil {
					t.Fatal(err)
				}
				parts[part+partSuffix] = got
			}
			if err := check(filepath.Join(dir, name+outSuffix), parts, *update); err != nil {
				t.Error(err)
			}
		})
	}
	if err := checkOrphans(dir, *update); err != nil {
		t.Error(err)
	}
}

// List makes a list for a document.
func List[T any](all iter.Seq[T]) []any {
	list := []any{}
	for v := range all {
		list = append(list, v)
	}
	return list
}

// Cases gives the names of the cases in dir; having none is a failure.
func Cases(t testing.TB, dir string) []string {
	t.Helper()
	names, err := cases(dir, inSuffix)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) == 0 {
		t.Fatalf("%s has no *%s", dir, inSuffix)
	}
	return names
}

// Input gives the content of a case's input.
func Input(t testing.TB, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name+inSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// YAML encodes v with sorted keys. Protobuf messages in it, at any depth of
// maps of strings and slices, take their JSON form: protojson varies its white
// space on purpose, so its output must not be compared as it is.
func YAML(v any) ([]byte, error) {
	plain, err := plain(v)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(plain); err != nil {
		return nil, fmt.Errorf("encode as YAML: %w", err)
	}
	return out.Bytes(), nil
}

// plain gives v as the maps, slices and scalars that its JSON decodes to.
func plain(v any) (any, error) {
	switch v := v.(type) {
	case proto.Message:
		b, err := protojson.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", v.ProtoReflect().Descriptor().Name(), err)
		}
		return fromJSON(b)
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, value := range v {
			p, err := plain(value)
			if err != nil {
				return nil, err
			}
			out[key] = p
		}
		return out, nil
	case []any:
		out := make([]any, len(v))
		for i, value := range v {
			p, err := plain(value)
			if err != nil {
				return nil, err
			}
			out[i] = p
		}
		return out, nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return fromJSON(b)
}

func fromJSON(b []byte) (any, error) {
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, err
	}
	return out, nil
}

// check compares the parts of an answer with the files in its directory, or writes them.
func check(dir string, parts map[string][]byte, write bool) error {
	if write {
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
			return err
		}
	}
	there, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, file := range there {
		if parts[file.Name()] == nil {
			errs = append(errs, fmt.Errorf("%s is no part of the answer; run the test with -update to delete it", filepath.Join(dir, file.Name())))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		errs = append(errs, checkFile(filepath.Join(dir, name), parts[name], write))
	}
	return errors.Join(errs...)
}

// checkFile compares got with the file, or writes it.
func checkFile(file string, got []byte, write bool) error {
	if write {
		return os.WriteFile(file, got, 0o644)
	}
	want, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing; run the test with -update and look at what it writes", file)
	}
	if err != nil {
		return err
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
		return fmt.Errorf("%s differs (-want +got); run the test with -update if that is right:\n%s", file, diff)
	}
	return nil
}

// checkOrphans finds the answers without a question, or deletes them.
func checkOrphans(dir string, remove bool) error {
	questions, err := cases(dir, inSuffix)
	if err != nil {
		return err
	}
	answers, err := cases(dir, outSuffix)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range answers {
		if slices.Contains(questions, name) {
			continue
		}
		file := filepath.Join(dir, name+outSuffix)
		if remove {
			errs = append(errs, os.RemoveAll(file))
			continue
		}
		errs = append(errs, fmt.Errorf("%s has no %s%s; run the test with -update to delete it", file, name, inSuffix))
	}
	return errors.Join(errs...)
}

// cases gives, sorted, the names of the files in dir that end in suffix.
func cases(dir, suffix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok {
			names = append(names, name)
		}
	}
	return names, nil
}
