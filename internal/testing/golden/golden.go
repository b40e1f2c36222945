// Package golden runs tests whose question and answer are files: <case>.in.yaml
// holds everything that goes in, <case>.out.yaml everything that comes out.
//
//	go test ./listeners -update
//
// writes the answers anew and deletes those whose question is gone; without the
// flag, a different answer, a missing one and a forgotten one are failures.
package golden

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"iter"
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
	inSuffix  = ".in.yaml"
	outSuffix = ".out.yaml"
)

// Run runs a subtest for every case in dir: answer gets the content of
// <case>.in.yaml, and what it returns is compared with <case>.out.yaml as YAML
// (see YAML).
func Run(t *testing.T, dir string, answer func(t *testing.T, in []byte) any) {
	t.Helper()
	for _, name := range Cases(t, dir) {
		t.Run(name, func(t *testing.T) {
			got, err := YAML(answer(t, Input(t, dir, name)))
			if err != nil {
				t.Fatal(err)
			}
			if err := check(filepath.Join(dir, name+outSuffix), got, *update); err != nil {
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

// check compares got with the file, or writes it.
func check(file string, got []byte, write bool) error {
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
			errs = append(errs, os.Remove(file))
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
