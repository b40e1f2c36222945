package consulchart

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf16"
)

const (
	// Annotation is the pod annotation whose JSON becomes the Proxy.Config of a gateway's registration.
	Annotation = "consul.hashicorp.com/proxy-config-map"
	// BootstrapKey is the key of Proxy.Config with the template that consul-dataplane makes Envoy's bootstrap from.
	BootstrapKey = "envoy_bootstrap_json_tpl"
)

// usherMark begins each template that Usher puts into an annotation. It is a comment of the template, so it does not
// reach Envoy, and tells Usher's templates from those of others.
const usherMark = "{{/* made by usher helm-values */}}"

// config returns the new value of the annotation: what it has now, and the bootstrap.
func (b *overrideBuilder) config(a annotationValue) (string, error) {
	members := map[string]json.RawMessage{}
	existing := a.get(Annotation)
	if existing != nil {
		refuse := func(format string, args ...any) (string, error) {
			return "", b.values.errorAt(a.value, "%s: %s", a.path, Annotation+" "+fmt.Sprintf(format, args...))
		}
		if existing.templated {
			return refuse("depends on Helm's template actions, and Usher cannot add the bootstrap to it; write it without {{ }}")
		}
		if err := decodeConfig(existing.value, &members); err != nil {
			return refuse("is not a JSON object (%v), and consul-k8s ignores such a value; correct it, or remove it", err)
		}
		for key, value := range members {
			switch {
			case !strings.EqualFold(key, BootstrapKey):
			case isUshers(value):
				delete(members, key)
			default:
				return refuse("already has a bootstrap (%s) that usher helm-values did not make; remove that key, or leave this gateway out", key)
			}
		}
	}
	template, err := json.Marshal(b.template)
	if err != nil {
		return "", err
	}
	members[BootstrapKey] = template
	return encodeConfig(members), nil
}

// isUshers reports whether a value of BootstrapKey was made by Usher.
func isUshers(value json.RawMessage) bool {
	var template string
	return json.Unmarshal(value, &template) == nil && strings.HasPrefix(template, usherMark)
}

// decodeConfig decodes the annotation's value, as consul-k8s does.
func decodeConfig[V any](text string, into *map[string]V) error {
	err := json.Unmarshal([]byte(text), into)
	if err == nil && *into == nil {
		err = errors.New("it is null")
	}
	return err
}

// encodeConfig returns the members as one line of JSON that Helm's template, YAML and a YAML text in single quotes
// leave as it is: ASCII only, and without "{{". The dataplane reads \u007b\u007b in a string as "{{" again. A "}}" is
// not an action's begin, and two objects may end in one.
func encodeConfig(members map[string]json.RawMessage) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, key := range slices.Sorted(maps.Keys(members)) {
		if i > 0 {
			b.WriteString(", ")
		}
		name, _ := json.Marshal(key) // a string
		b.Write(name)
		b.WriteString(": ")
		var value bytes.Buffer
		_ = json.Compact(&value, members[key]) // it was decoded
		b.Write(value.Bytes())
	}
	b.WriteByte('}')
	return strings.ReplaceAll(toASCII(b.String()), "{{", `\u007b\u007b`)
}

// toASCII escapes the characters of a JSON text that YAML could read as something else, such as the line end U+0085.
func toASCII(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r >= ' ' && r <= '~' {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}
