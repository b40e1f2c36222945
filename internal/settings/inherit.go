package settings

import (
	"maps"
	"slices"
)

// StripInherited gives what a registration itself says under the key usher. Consul shows a
// registration only with proxy-defaults merged in, so what is equal in both
// counts as inherited: objects are compared key by key, as Consul merges them,
// and the value of a setting as a whole. Nil means that nothing is left.
//
// What Consul's merge has made of a value cannot be undone: of two objects, such
// as the only TLV of a list, it makes one with the keys of both.
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

// isObject says whether settings stand at a path, and not the value of one.
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
	switch b.(type) {
	case map[string]any, []any:
		return false
	}
	return a == b
}
