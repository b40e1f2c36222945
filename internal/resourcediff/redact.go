package resourcediff

import (
	"regexp"
	"strings"

	"github.com/cncf/xds/go/udpa/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/usherproxy/usher/internal/redaction"
)

// secretHeader matches the names of headers that often carry a secret.
var secretHeader = regexp.MustCompile(`(?i)authorization|cookie|token|secret|password|api[-_]?key`)

// IsSecretHeader reports whether the name of a header says that its value must not be printed.
func IsSecretHeader(name string) bool { return secretHeader.MatchString(name) }

// Redact replaces in place what must not be printed, as RedactTree does.
func (r Resources) Redact() Resources {
	for _, byName := range r {
		for name, t := range byName {
			byName[name] = RedactTree(t)
		}
	}
	return r
}

// RedactTree returns a tree without what must not be printed; it changes the tree. It is for what Envoy and Usher print and
// for files of settings and config entries. It replaces
//   - the fields that Envoy's API marks as sensitive, wherever a field of such a name is,
//   - the metadata of gRPC calls,
//   - the values of headers, cookies and query parameters whose names say that they are secret, also in matchers, and all
//     texts and numbers below a key that says so,
//   - and in all texts what redaction.Text finds.
func RedactTree(t Tree) Tree {
	switch t := t.(type) {
	case string:
		return redaction.Text(t)
	case []any:
		for i, v := range t {
			t[i] = RedactTree(v)
		}
	case map[string]any:
		redactObject(t)
		for key, v := range t {
			t[key] = RedactTree(v)
		}
	}
	return t
}

func redactObject(object map[string]any) {
	for field, value := range object {
		switch {
		case sensitiveFields[field]:
			object[field] = redaction.Redacted
		case isSecretKey(field):
			object[field] = redactBelow(field, value)
		}
	}
	redactNamed(object)
	list, _ := object["initial_metadata"].([]any)
	for _, item := range list {
		if header, isHeader := item.(map[string]any); isHeader {
			redactValues(header)
		}
	}
}

// isSecretKey reports whether the key of an object says that what is there must not be printed, and not only where it is,
// how much of it there is, or that Usher redacts it.
func isSecretKey(key string) bool {
	key = strings.ToLower(key)
	for _, other := range []string{"file", "path", "name", "config", "configs"} {
		if strings.HasSuffix(key, other) {
			return false
		}
	}
	return IsSecretHeader(key) && !strings.HasPrefix(key, "redact_") && !strings.Contains(key, "tokens")
}

// redactBelow returns what is at a secret key without its texts and numbers. Of a message of Envoy's API, it redacts the
// values alone: such as a cookie in a hash policy, it has names, too. A key with a dot or colon is the name of a service.
func redactBelow(key string, t Tree) Tree {
	switch t := t.(type) {
	case nil, bool:
		return t
	case []any:
		for i, item := range t {
			t[i] = redactBelow(key, item)
		}
		return t
	case map[string]any:
		switch {
		case messageFields[key]:
			redactValues(t)
		case !strings.ContainsAny(key, ".:"):
			for field, value := range t {
				t[field] = redactBelow(field, value)
			}
		}
		return t
	}
	if t == "" {
		return t
	}
	return redaction.Redacted
}

// redactNamed redacts the value of a header, cookie or query parameter, or what a matcher compares it with, if its name says
// that this is secret. It knows the names of Envoy, of Consul and of Usher's settings.
func redactNamed(object map[string]any) {
	for field, name := range object {
		if name, isText := name.(string); isText && nameFields[strings.ToLower(field)] && IsSecretHeader(name) {
			redactValues(object)
			if nested, isMatcher := object["Match"].(map[string]any); isMatcher {
				redactValues(nested)
			}
		}
	}
}

// redactValues redacts the fields of an object that have a value, and not only its name.
func redactValues(object map[string]any) {
	for field, value := range object {
		if value != nil && value != "" && valueFields[strings.ToLower(field)] {
			object[field] = redaction.Redacted
		}
	}
}

// nameFields are the fields with the name of a header, cookie or query parameter, in lower case.
var nameFields = map[string]bool{"name": true, "key": true, "header_name": true}

// valueFields are the fields with a value, or with what a matcher compares a value with, in lower case.
var valueFields = map[string]bool{
	"string_match": true, "exact_match": true, "prefix_match": true, "suffix_match": true, "contains_match": true, "safe_regex_match": true,
	"exact": true, "prefix": true, "suffix": true, "contains": true, "regex": true, "safe_regex": true,
	"value": true, "raw_value": true, "header_value": true, "inline_string": true, "inline_bytes": true,
}

// sensitiveFields are the names of the fields that Envoy's API marks as sensitive. One of them, typed_config of
// PrivateKeyProvider, shares its name with fields that are not, so the whole provider stands for it. In Envoy's command line
// (GET /server_info), config_yaml is a whole bootstrap, with the token.
//
// messageFields are the names of the fields of Envoy's API that have messages.
var sensitiveFields, messageFields = readFields()

func readFields() (sensitive, messages map[string]bool) {
	sensitive, messages = map[string]bool{"private_key_provider": true, "config_yaml": true}, map[string]bool{}
	var read func(all protoreflect.MessageDescriptors)
	read = func(all protoreflect.MessageDescriptors) {
		for i := range all.Len() {
			read(all.Get(i).Messages())
			list := all.Get(i).Fields()
			for k := range list.Len() {
				field := list.Get(k)
				if marked, _ := proto.GetExtension(field.Options(), annotations.E_Sensitive).(bool); marked {
					sensitive[string(field.Name())] = true
				}
				if field.Message() != nil && !field.IsMap() {
					messages[string(field.Name())] = true
				}
			}
		}
	}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if strings.HasPrefix(string(file.Package()), "envoy.") {
			read(file.Messages())
		}
		return true
	})
	delete(sensitive, "typed_config")
	return sensitive, messages
}
