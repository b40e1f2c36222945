// Package orderedcmp lets go-cmp compare ordered Maps.
package orderedcmp

import (
	"maps"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/ordered"
)

// Entries compares Maps of V as Go maps.
func Entries[V comparable]() cmp.Option {
	return cmp.Transformer("Entries", func(m ordered.Map[V]) map[string]V { return maps.Collect(m.All()) })
}
