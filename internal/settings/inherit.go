package settings

import (
	"maps"
	"slices"
)

// StripInherited returns a registration's own settings under the key usher; nil if there are none. Consul shows a
// registration only with proxy-defaults merged in, so a value that is equal in both counts as inherited. Objects are
// compared key by key, as Consul merges them, and the value of a setting as a whole.
//
// It cannot undo a merge of values: Consul makes one object of two, such as the only TLV of each list, with the keys
// of both.
func StripInherited(merged, inherited any) any {
	return stripInherited(merged, inherited, nil)
}

func stripInherited(merged, inherited any, path []string) any {
	m, ok := single(merged).(map[string]any)
	base, both := single(inherited).(map[string]any)
	if !ok || !both || !isObject(path) {
		if equal(merged, inherited) {
			return nil
		}
		return single(merged)
	}
	out := map[string]any{}
	for key, v := range m {
		from, has := base[key]
		if !has {
			out[key] = v
			continue
		}
		if rest := stripInherited(v, from, append(slices.Clone(path), key)); rest != nil {
			out[key] = rest
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// isObject reports whether a path leads to an object of settings, and not to a value.
func isObject(path []string) bool {
	if len(path) > 0 && path[0] == listenersKey {
		path = path[min(2, len(path)):]
	}
	return len(path) == 0 || len(path) == 1 && slices.Contains(groupKeys(), path[0])
}

// equal compares decoded JSON, in which a list of one equals its element.
func equal(a, b any) bool {
	a, b = single(a), single(b)
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && maps.EqualFunc(a, b, equal)
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, equal)
	}
	return a == b
}
