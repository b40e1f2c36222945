package consul

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// envelope are the fields of every config entry that say nothing about a gateway.
var envelope = []string{"Kind", "Namespace", "Partition", "Meta", "Hash", "CreateIndex", "ModifyIndex"}

// unknownFields returns the fields with a value that an element of a list of config entries has, and T has not, by the
// names of the entries: "Listeners.Services.Retries", sorted. A Consul that is newer than Usher writes such fields
// also where no user has set them, and then without a value.
func unknownFields[T any](list []byte) map[string][]string {
	var entries []map[string]any
	if json.Unmarshal(list, &entries) != nil {
		return nil // it is decoded before
	}
	unknown := map[string][]string{}
	for _, entry := range entries {
		for _, field := range envelope {
			delete(entry, field)
		}
		found := map[string]bool{}
		addUnknown(found, "", entry, reflect.TypeFor[T]())
		if name, _ := entry["Name"].(string); len(found) > 0 {
			unknown[name] = slices.Sorted(maps.Keys(found))
		}
	}
	return unknown
}

// addUnknown adds the fields of a value at a path that a type has not. As in encoding/json, case has no meaning.
func addUnknown(found map[string]bool, path string, value any, t reflect.Type) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	switch value := value.(type) {
	case []any:
		for _, element := range value {
			addUnknown(found, path, element, t)
		}
	case map[string]any:
		if t.Kind() != reflect.Struct {
			return
		}
		for key, below := range value {
			known, ok := t.FieldByNameFunc(func(name string) bool { return strings.EqualFold(name, key) })
			if field := strings.TrimPrefix(path+"."+key, "."); ok {
				addUnknown(found, field, below, known.Type)
			} else if hasValue(below) {
				found[field] = true
			}
		}
	}
}

// hasValue reports whether a value is more than the zero value of its type.
func hasValue(value any) bool {
	switch value := value.(type) {
	case nil:
		return false
	case []any:
		return len(value) > 0
	case map[string]any:
		return slices.ContainsFunc(slices.Collect(maps.Values(value)), hasValue)
	}
	return !reflect.ValueOf(value).IsZero()
}
