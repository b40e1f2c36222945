package configdir

import (
	"strings"
	"unicode"
)

// snake gives a field's name as Consul's HCL spells it: max_connections.
func snake(name string) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		if i > 0 && startsWord(runes, i) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// startsWord says whether a word begins at i: at a digit or a capital after a
// small letter, and at the last capital of a row that small letters follow.
func startsWord(runes []rune, i int) bool {
	prev, r := runes[i-1], runes[i]
	if unicode.IsLower(prev) {
		return unicode.IsUpper(r) || unicode.IsDigit(r)
	}
	return unicode.IsUpper(prev) && unicode.IsUpper(r) && i+1 < len(runes) && unicode.IsLower(runes[i+1])
}

// camel gives a field's name as Consul's custom resources spell it:
// maxConnections, tlsMinVersion.
func camel(name string) string {
	first, _, _ := strings.Cut(snake(name), "_")
	return first + name[len(first):]
}
