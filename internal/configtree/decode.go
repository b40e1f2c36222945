package configtree

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/problem"
)

// Refused is the type of a field that Consul has and Usher does not support. Its value has to be unset. The tag
// "why" gives the reason and, after a semicolon, what to do other than to remove the field.
type Refused struct{}

// Forbidden is Refused also where it is empty, for a block that has a meaning without content.
type Forbidden struct{}

// Ignored is the type of a field that has no effect, so that any value is fine.
type Ignored struct{}

// Decoder decodes the nodes of a file into structs and collects the problems: a member without a field, a value of
// another type.
type Decoder struct {
	File string
	// Strict accepts only names as in Kubernetes resources (maxConnections) and values of the field's type.
	// Otherwise every spelling that Consul accepts in HCL and JSON is right, a list of one may stand for its element
	// and the reverse, and a number may be written as a string and the reverse.
	Strict   bool
	Problems []problem.Problem
}

// Add adds a problem. The path may be empty.
func (d *Decoder) Add(at Mark, path, format string, args ...any) {
	p := problem.Problem{
		At:   problem.Position{File: d.File, Line: at.Line, Column: at.Column},
		What: fmt.Sprintf(format, args...),
	}
	p.Where = p.At.String()
	if path != "" {
		p.Where += ": " + OneLine(path)
	}
	isSame := func(other problem.Problem) bool { return other.String() == p.String() }
	if !slices.ContainsFunc(d.Problems, isSame) {
		d.Problems = append(d.Problems, p)
	}
}

// Locate follows steps from n: names of members and indexes of lists. It returns the place of what they lead to, or
// of the last thing that exists on the way, and its path. Names that are not in the file have the file's spelling.
func (d *Decoder) Locate(n *yaml.Node, steps ...any) (at Mark, path string) {
	at = MarkOf(n)
	for _, step := range steps {
		switch step := step.(type) {
		case int:
			if n != nil && n.Kind == yaml.SequenceNode && step < len(n.Content) {
				n = n.Content[step]
				at = MarkOf(n)
				path += fmt.Sprintf("[%d]", step)
			}
		case string:
			key, value := Get(Single(n), step)
			n = value
			if key == nil {
				path = join(path, d.spell(step))
				continue
			}
			at, path = MarkOf(key), join(path, key.Value)
		}
	}
	return at, path
}

// spell returns the name of a field in the file's own spelling.
func (d *Decoder) spell(name string) string {
	if d.Strict {
		return camel(name)
	}
	return snake(name)
}

// Object decodes the members of n into the fields of the structs that into points to, each member into the one that
// has a field for it.
func (d *Decoder) Object(n *yaml.Node, path string, into ...any) {
	if !d.isObject(n, path) {
		return
	}
	fields := fieldsOf(into)
	lines := map[string]int{}
	for key, value := range Members(n) {
		at := join(path, key.Value)
		f := slices.IndexFunc(fields, func(f field) bool { return d.isName(key.Value, f.Name) })
		if f < 0 {
			d.unknown(key, at, fields)
			continue
		}
		if earlier, twice := lines[fields[f].Name]; twice {
			d.Add(MarkOf(key), at, "this key is already given at %s; remove one of the two", At(d.File, earlier))
			continue
		}
		lines[fields[f].Name] = key.Line
		d.field(key, value, at, fields[f])
	}
}

func (d *Decoder) isObject(n *yaml.Node, path string) bool {
	if n.Kind != yaml.MappingNode {
		d.Add(MarkOf(n), path, "%s is not allowed; use an object", Describe(n))
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
func (d *Decoder) isName(key, name string) bool {
	if d.Strict {
		return sameName(key, name) && key == camel(name)
	}
	return sameName(key, name)
}

func (d *Decoder) unknown(key *yaml.Node, path string, fields []field) {
	var known []string
	for _, f := range fields {
		switch f.value.Interface().(type) {
		case Refused, Forbidden, Ignored:
		default:
			known = append(known, d.spell(f.Name))
		}
	}
	slices.Sort(known)
	d.Add(MarkOf(key), path, "this key is unknown%s; remove it, or use %s",
		problem.DidYouMean(key.Value, known), strings.Join(known, ", "))
}

func (d *Decoder) field(key, value *yaml.Node, path string, f field) {
	isRefused := false
	switch f.value.Interface().(type) {
	case Ignored:
	case Refused:
		isRefused = IsSet(value)
	case Forbidden:
		isRefused = value.Tag != Null
	default:
		d.value(value, path, f.value)
	}
	if isRefused {
		why := f.Tag.Get("why")
		if !strings.Contains(why, ";") {
			why += "; remove it"
		}
		d.Add(MarkOf(key), path, "%s", why)
	}
}

// value decodes n into v. Null leaves v as it is.
func (d *Decoder) value(n *yaml.Node, path string, v reflect.Value) {
	if n.Tag == Null {
		return
	}
	if _, opaque := reflect.TypeAssert[*yaml.Node](v); opaque {
		v.Set(reflect.ValueOf(n))
		return
	}
	if !d.Strict && v.Kind() != reflect.Slice {
		n = Single(n)
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, path, v.Elem())
	case reflect.Struct:
		d.Object(n, path, v.Addr().Interface())
	case reflect.Slice:
		d.list(n, path, v)
	case reflect.Map:
		if !d.isObject(n, path) {
			return
		}
		v.Set(reflect.MakeMap(v.Type()))
		for key, value := range Members(n) {
			member := reflect.New(v.Type().Elem()).Elem()
			d.value(value, join(path, key.Value), member)
			v.SetMapIndex(reflect.ValueOf(key.Value), member)
		}
	default:
		if wanted := d.scalar(n, v); wanted != "" {
			d.Add(MarkOf(n), path, "%s is not allowed; use %s", Describe(n), wanted)
		}
	}
}

func (d *Decoder) list(n *yaml.Node, path string, v reflect.Value) {
	isList := n.Kind == yaml.SequenceNode
	if !isList && d.Strict {
		d.Add(MarkOf(n), path, "%s is not allowed; use a list", Describe(n))
		return
	}
	items := Elements(n)
	v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	for i, item := range items {
		at := path
		if isList {
			at = fmt.Sprintf("%s[%d]", path, i)
		}
		d.value(item, at, v.Index(i))
	}
}

// scalar decodes a string, number, boolean or what unmarshals itself, which are Consul's durations. If it cannot, it
// returns what to use.
func (d *Decoder) scalar(n *yaml.Node, v reflect.Value) (wanted string) {
	isText, isBool := n.Tag == String, n.Tag == Bool
	isNumber := n.Kind == yaml.ScalarNode && !isText && !isBool
	quoted := isText && !d.Strict // a number or boolean may be
	if duration, ok := reflect.TypeAssert[json.Unmarshaler](v.Addr()); ok {
		text, err := json.Marshal(Plain(n))
		if err != nil || !isText && d.Strict || duration.UnmarshalJSON(text) != nil {
			return `a duration such as "10s"`
		}
		return ""
	}
	switch v.Kind() {
	case reflect.String:
		if !isText && (d.Strict || !isNumber) {
			return "a string in quotes"
		}
		v.SetString(n.Value)
	case reflect.Bool:
		b, err := strconv.ParseBool(n.Value)
		if err != nil || !isBool && !quoted {
			return "true or false"
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(n.Value, 10, v.Type().Bits())
		if err != nil || !isNumber && !quoted {
			return "a whole number"
		}
		v.SetInt(i)
	case reflect.Uint32:
		i, err := strconv.ParseUint(n.Value, 10, 32)
		if err != nil || !isNumber && !quoted {
			return "a whole number from 0 to 4294967295"
		}
		v.SetUint(i)
	default:
		panic("configtree: no decoding into " + v.Type().String())
	}
	return ""
}

// snake returns a field's name as Consul's HCL spells it: max_connections. A word begins at a digit or a capital
// after a small letter, and at the last capital of a row that small letters follow. No field has a word of one letter.
func snake(name string) string {
	return strings.ToLower(wordBreak.ReplaceAllString(name, "${1}${3}_${2}${4}"))
}

var wordBreak = regexp.MustCompile(`([a-z])([A-Z0-9])|([A-Z])([A-Z][a-z])`)

// camel returns a field's name as Consul's custom resources spell it: maxConnections, tlsMinVersion.
func camel(name string) string {
	first, _, _ := strings.Cut(snake(name), "_")
	return first + name[len(first):]
}
