package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"iter"

	"github.com/usherproxy/usher/internal/resourcediff"
)

type (
	// lazyObject are the fields of a JSON object. Each is made when it is written.
	lazyObject = iter.Seq2[string, any]
	// lazyList are the items of a JSON list. Each is made when it is written.
	lazyList = iter.Seq[any]
)

// writeRedacted writes a value as JSON without secrets. Of a lazyObject and a lazyList, it has one part in memory at a time.
// An error that is a part is written as an object with it.
func writeRedacted(w io.Writer, value any) error {
	out := bufio.NewWriterSize(w, 64<<10)
	if err := writePart(out, value); err != nil {
		return err
	}
	if err := out.WriteByte('\n'); err != nil {
		return err
	}
	return out.Flush()
}

func writePart(w *bufio.Writer, value any) error {
	switch value := value.(type) {
	case lazyObject:
		return writeParts(w, "{}", func(next func() error) (err error) {
			for key, v := range value {
				if err = next(); err == nil {
					_, err = fmt.Fprintf(w, "%s:", mustJSON(key))
				}
				if err == nil {
					err = writePart(w, v)
				}
				if err != nil {
					break
				}
			}
			return err
		})
	case lazyList:
		return writeParts(w, "[]", func(next func() error) (err error) {
			for v := range value {
				if err = next(); err == nil {
					err = writePart(w, v)
				}
				if err != nil {
					break
				}
			}
			return err
		})
	case error:
		return writePart(w, map[string]any{"error": value.Error()})
	}
	tree, err := treeOf(value)
	if err != nil {
		return err
	}
	_, err = w.Write(mustJSON(resourcediff.RedactTree(tree)))
	return err
}

// writeParts writes the brackets, and what all writes between them. all calls next before each part.
func writeParts(w *bufio.Writer, brackets string, all func(next func() error) error) error {
	separator := brackets[:1] + "\n"
	next := func() error {
		_, err := w.WriteString(separator)
		separator = ",\n"
		return err
	}
	if err := all(next); err != nil {
		return err
	}
	if separator != ",\n" { // there is no part
		_, err := w.WriteString(brackets)
		return err
	}
	return w.WriteByte(brackets[1])
}

// treeOf returns a value as decoded JSON.
func treeOf(value any) (tree resourcediff.Tree, err error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return tree, json.Unmarshal(text, &tree)
}

// mustJSON returns decoded JSON as text.
func mustJSON(tree resourcediff.Tree) []byte { return []byte(resourcediff.Text(tree)) }
