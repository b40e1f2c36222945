package configdir

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// refused is the type of a field that Consul has and file mode cannot honour. Its value has to be unset. The tag "why"
// gives the reason and, after a semicolon, what to do other than to remove the field.
type refused struct{}

// forbidden is refused also where it is empty, for a block that has a meaning without content.
type forbidden struct{}

// ignored is the type of a field that has no effect on an ingress gateway in Consul either.
type ignored struct{}

// decoder decodes the nodes of a file into structs and collects the problems: a member without a field, a value of
// another type.
type decoder struct {
	file string
	// custom says that names are spelled as in Consul's custom resources, and no other way. Otherwise every
	// spelling is right that Consul takes in HCL and JSON, and a list of one may stand for its element and the
	// reverse.
	custom   bool
	problems Problems
}

func (d *decoder) add(line int, path, format string, args ...any) {
	where := configtree.At(d.file, line)
	if path != "" {
		where += ": " + configtree.OneLine(path)
	}
	p := problem.Problem{Where: where, What: fmt.Sprintf(format, args...)}
	if !slices.Contains(d.problems, p) {
		d.problems = append(d.problems, p)
	}
}

// addAt adds a problem at the end of steps from n (see configtree.Locate).
func (d *decoder) addAt(n *yaml.Node, steps []any, format string, args ...any) {
	line, path := configtree.Locate(n, d.spell, steps...)
	d.add(line, path, format, args...)
}

// spell returns the name of a field in the file's own spelling.
func (d *decoder) spell(name string) string {
	if d.custom {
		return camel(name)
	}
	return snake(name)
}

// object decodes the members of n into the fields of the structs that into points to, each member into the one that
// has a field for it.
func (d *decoder) object(n *yaml.Node, path string, into ...any) {
	if !d.isObject(n, path) {
		return
	}
	fields := fieldsOf(into)
	lines := map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := configtree.Join(path, key.Value)
		f := slices.IndexFunc(fields, func(f field) bool { return d.isName(key.Value, f.Name) })
		if f < 0 {
			d.unknown(key, at, fields)
			continue
		}
		if earlier, twice := lines[fields[f].Name]; twice {
			d.add(key.Line, at, "this key is already given at %s; remove one of the two", configtree.At(d.file, earlier))
			continue
		}
		lines[fields[f].Name] = key.Line
		d.field(key, value, at, fields[f])
	}
}

func (d *decoder) isObject(n *yaml.Node, path string) bool {
	if n.Kind != yaml.MappingNode {
		d.add(n.Line, path, "%s is not allowed; use an object", configtree.Describe(n))
	}
	return n.Kind == yaml.MappingNode
}

type field struct {
	reflect.StructField
	value reflect.Value
}

// fieldsOf returns the fields of structs, those of embedded structs among them.
func fieldsOf(structs []any) []field {
	var fields []field
	for _, pointer := range structs {
		v := reflect.ValueOf(pointer).Elem()
		for _, f := range reflect.VisibleFields(v.Type()) {
			if f.IsExported() && !f.Anonymous {
				fields = append(fields, field{f, v.FieldByIndex(f.Index)})
			}
		}
	}
	return fields
}

// isName reports whether a key is a spelling of a field's name.
func (d *decoder) isName(key, name string) bool {
	if d.custom {
		return key == camel(name)
	}
	return configtree.SameName(key, name)
}

func (d *decoder) unknown(key *yaml.Node, path string, fields []field) {
	var known []string
	for _, f := range fields {
		switch f.value.Interface().(type) {
		case refused, forbidden, ignored:
		default:
			known = append(known, d.spell(f.Name))
		}
	}
	slices.Sort(known)
	d.add(key.Line, path, "unknown key%s; remove it, or use %s", problem.DidYouMean(key.Value, known), strings.Join(known, ", "))
}

func (d *decoder) field(key, value *yaml.Node, path string, f field) {
	isRefused := false
	switch f.value.Interface().(type) {
	case ignored:
	case refused:
		isRefused = configtree.IsSet(value)
	case forbidden:
		isRefused = value.Tag != configtree.Null
	default:
		d.value(value, path, f.value)
	}
	if isRefused {
		why := f.Tag.Get("why")
		if !strings.Contains(why, ";") {
			why += "; remove it"
		}
		d.add(key.Line, path, "%s", why)
	}
}

// value decodes n into v. Null leaves v as it is.
func (d *decoder) value(n *yaml.Node, path string, v reflect.Value) {
	if n.Tag == configtree.Null {
		return
	}
	if _, opaque := reflect.TypeAssert[*yaml.Node](v); opaque {
		v.Set(reflect.ValueOf(n))
		return
	}
	if !d.custom && v.Kind() != reflect.Slice {
		n = configtree.Single(n)
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, path, v.Elem())
	case reflect.Struct:
		d.object(n, path, v.Addr().Interface())
	case reflect.Slice:
		d.list(n, path, v)
	case reflect.Map:
		if !d.isObject(n, path) {
			return
		}
		v.Set(reflect.MakeMap(v.Type()))
		for i := 0; i < len(n.Content); i += 2 {
			member := reflect.New(v.Type().Elem()).Elem()
			d.value(n.Content[i+1], configtree.Join(path, n.Content[i].Value), member)
			v.SetMapIndex(reflect.ValueOf(n.Content[i].Value), member)
		}
	default:
		if wanted := d.scalar(n, v); wanted != "" {
			d.add(n.Line, path, "%s is not allowed; use %s", configtree.Describe(n), wanted)
		}
	}
}

func (d *decoder) list(n *yaml.Node, path string, v reflect.Value) {
	isList := n.Kind == yaml.SequenceNode
	if !isList && d.custom {
		d.add(n.Line, path, "%s is not allowed; use a list", configtree.Describe(n))
		return
	}
	items := configtree.Elements(n)
	v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	for i, item := range items {
		at := path
		if isList {
			at = fmt.Sprintf("%s[%d]", path, i)
		}
		d.value(item, at, v.Index(i))
	}
}

// scalar decodes a string, number, boolean or duration. If it cannot, it returns what to use. Outside custom resources
// a number may be written as a string and the reverse, as Consul takes them.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value) (wanted string) {
	isText, isBool := n.Tag == configtree.String, n.Tag == configtree.Bool
	isNumber := n.Kind == yaml.ScalarNode && !isText && !isBool
	weak := !d.custom
	if into, ok := reflect.TypeAssert[*gateway.Duration](v.Addr()); ok {
		ns, err := strconv.ParseInt(n.Value, 10, 64)
		if isText && n.Value != "" {
			var span time.Duration
			span, err = time.ParseDuration(n.Value)
			ns = int64(span)
		}
		if ok := err == nil && (isText || weak && n.Tag == configtree.Int) || isText && n.Value == ""; !ok {
			return `a duration such as "10s"`
		}
		*into = gateway.Duration(ns)
		return ""
	}
	switch v.Kind() {
	case reflect.String:
		if !isText && (!weak || !isNumber) {
			return "a string in quotes"
		}
		v.SetString(n.Value)
	case reflect.Bool:
		b, err := strconv.ParseBool(n.Value)
		if err != nil || !isBool && (!weak || !isText) {
			return "true or false"
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(n.Value, 10, v.Type().Bits())
		if err != nil || !isNumber && (!weak || !isText) {
			return "a whole number"
		}
		v.SetInt(i)
	case reflect.Uint32:
		i, err := strconv.ParseUint(n.Value, 10, 32)
		if err != nil || !isNumber && (!weak || !isText) {
			return "a whole number from 0 to 4294967295"
		}
		v.SetUint(i)
	default:
		panic("configdir: no decoding into " + v.Type().String())
	}
	return ""
}

// snake returns a field's name as Consul's HCL spells it: max_connections. A word begins at a digit or a capital after
// a small letter, and at the last capital of a row that small letters follow.
func snake(name string) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		afterSmall := i > 0 && unicode.IsLower(runes[i-1])
		beforeSmall := i > 0 && i+1 < len(runes) && unicode.IsLower(runes[i+1])
		if afterSmall && (unicode.IsUpper(r) || unicode.IsDigit(r)) || beforeSmall && unicode.IsUpper(r) && unicode.IsUpper(runes[i-1]) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// camel returns a field's name as Consul's custom resources spell it: maxConnections, tlsMinVersion.
func camel(name string) string {
	first, _, _ := strings.Cut(snake(name), "_")
	return first + name[len(first):]
}
