package configdir

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// refused is the type of a field that Consul knows and file mode cannot
// honour. A value that says something is a problem; the tag "why" gives the
// reason and, after a semicolon, what to do other than to remove the field. A
// value that says nothing, as Consul prints it where nothing was
// set, is fine.
type refused struct{}

// forbidden is refused also where it is empty, for a block that means something
// by being there.
type forbidden struct{}

// ignored is the type of a field that has no effect on an ingress gateway in
// Consul either.
type ignored struct{}

// decoder decodes nodes into structs strictly and collects what is wrong: a
// member that the struct has no field for, a value of another type.
type decoder struct {
	// custom says that names are spelled as in Consul's custom resources, and
	// no other way. Otherwise every spelling is taken that Consul takes in HCL
	// and JSON, and a list of one may stand for its element and the reverse.
	custom   bool
	problems Problems
}

// problem notes what is wrong at the end of steps from n (see node.locate).
func (d *decoder) problem(n *node, steps []any, format string, args ...any) {
	at, path := n.locate(d.spell, steps...)
	if p := problemAt(at, path, format, args...); !slices.Contains(d.problems, p[0]) {
		d.problems = append(d.problems, p...)
	}
}

// spell gives the name of a field in the file's own spelling.
func (d *decoder) spell(name string) string {
	if d.custom {
		return camel(name)
	}
	return snake(name)
}

// object decodes the members of n into the fields of the structs that into
// points to, each member into the one that has a field for it.
func (d *decoder) object(n *node, path string, into ...any) {
	n, ok := d.expectObject(n, path)
	if !ok {
		return
	}
	var fields []target
	for _, one := range into {
		fields = append(fields, d.targets(reflect.ValueOf(one).Elem())...)
	}
	seen := map[string]place{}
	for _, f := range n.fields {
		i := slices.IndexFunc(fields, func(t target) bool { return d.names(t, f.name) })
		if i < 0 {
			d.unknown(f, path, fields)
			continue
		}
		if earlier, twice := seen[fields[i].name]; twice {
			d.add(f.at, join(path, f.name), "this key is already given at %s; remove one of the two", earlier)
			continue
		}
		seen[fields[i].name] = f.at
		d.field(f, join(path, f.name), fields[i])
	}
}

func (d *decoder) expectObject(n *node, path string) (*node, bool) {
	if !d.custom {
		n = n.single()
	}
	if n.kind != object {
		d.add(n.at, path, "%s is not allowed; use an object", n.describe())
		return nil, false
	}
	return n, true
}

// target is a field that a member can be decoded into.
type target struct {
	name  string // of the Go field, or its tag "name"
	why   string
	value reflect.Value
}

// targets lists the fields of a struct, those of embedded structs among them.
func (d *decoder) targets(v reflect.Value) []target {
	var out []target
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous {
			out = append(out, d.targets(v.Field(i))...)
			continue
		}
		if !f.IsExported() {
			continue
		}
		t := target{name: f.Name, why: f.Tag.Get("why"), value: v.Field(i)}
		if name := f.Tag.Get("name"); name != "" {
			t.name = name
		}
		out = append(out, t)
	}
	return out
}

// names says whether a member called name belongs to the field.
func (d *decoder) names(t target, name string) bool {
	if d.custom && !strings.Contains(t.name, "_") {
		return camel(t.name) == name
	}
	return normal(t.name) == normal(name)
}

func (d *decoder) unknown(f field, path string, fields []target) {
	var known []string
	for _, t := range fields {
		switch t.value.Interface().(type) {
		case refused, forbidden, ignored:
		default:
			known = append(known, d.spell(t.name))
		}
	}
	slices.Sort(known)
	d.add(f.at, join(path, f.name), "this key is unknown; remove it or use one of %s", strings.Join(known, ", "))
}

func (d *decoder) field(f field, path string, t target) {
	switch t.value.Interface().(type) {
	case ignored:
	case refused:
		if f.value.says() {
			d.refuse(f.at, path, t.why)
		}
	case forbidden:
		if f.value.kind != null {
			d.refuse(f.at, path, t.why)
		}
	default:
		d.value(f.value, path, t.value)
	}
}

func (d *decoder) refuse(at place, path, why string) {
	if !strings.Contains(why, ";") {
		why += "; remove it"
	}
	d.add(at, path, "%s", why)
}

// value decodes n into v. Null leaves v as it is.
func (d *decoder) value(n *node, path string, v reflect.Value) {
	if n.kind == null {
		return
	}
	switch v.Interface().(type) {
	case *node:
		v.Set(reflect.ValueOf(n))
		return
	case gateway.Duration:
		d.duration(n, path, v)
		return
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
		d.members(n, path, v)
	default:
		d.scalar(n, path, v)
	}
}

func (d *decoder) list(n *node, path string, v reflect.Value) {
	items := n.items
	if n.kind != list {
		if d.custom {
			d.add(n.at, path, "%s is not allowed; use a list", n.describe())
			return
		}
		items = []*node{n}
	}
	v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	for i, item := range items {
		p := path
		if n.kind == list {
			p = fmt.Sprintf("%s[%d]", path, i)
		}
		d.value(item, p, v.Index(i))
	}
}

func (d *decoder) members(n *node, path string, v reflect.Value) {
	n, ok := d.expectObject(n, path)
	if !ok {
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, f := range n.fields {
		member := reflect.New(v.Type().Elem()).Elem()
		d.value(f.value, join(path, f.name), member)
		v.SetMapIndex(reflect.ValueOf(f.name), member)
	}
}

// scalar decodes strings, numbers and booleans. Outside custom resources a
// number may be written as a string and the reverse, as Consul takes them.
func (d *decoder) scalar(n *node, path string, v reflect.Value) {
	if !d.custom {
		n = n.single()
	}
	text := fmt.Sprint(n.scalar)
	_, isText := n.scalar.(string)
	_, isBool := n.scalar.(bool)
	weak := !d.custom
	switch v.Kind() {
	case reflect.String:
		if n.kind == scalar && (isText || weak && !isBool) {
			v.SetString(text)
			return
		}
		d.add(n.at, path, "%s is not allowed; use a string in quotes", n.describe())
	case reflect.Bool:
		if b, err := strconv.ParseBool(text); err == nil && (isBool || weak && isText) {
			v.SetBool(b)
			return
		}
		d.add(n.at, path, "%s is not allowed; use true or false", n.describe())
	case reflect.Int, reflect.Int64:
		if i, err := strconv.ParseInt(text, 10, v.Type().Bits()); err == nil && (!isText || weak) {
			v.SetInt(i)
			return
		}
		d.add(n.at, path, "%s is not allowed; use a whole number", n.describe())
	case reflect.Uint32:
		if i, err := strconv.ParseUint(text, 10, 32); err == nil && (!isText || weak) {
			v.SetUint(i)
			return
		}
		d.add(n.at, path, "%s is not allowed; use a whole number from 0 to 4294967295", n.describe())
	default:
		panic("files: no decoding into " + v.Type().String())
	}
}

// duration takes "5s", and outside custom resources a number of nanoseconds.
func (d *decoder) duration(n *node, path string, v reflect.Value) {
	switch value := n.scalar.(type) {
	case string:
		if value == "" {
			return
		}
		if span, err := time.ParseDuration(value); err == nil {
			v.SetInt(int64(span))
			return
		}
	case int64:
		if !d.custom {
			v.SetInt(value)
			return
		}
	}
	d.add(n.at, path, "%s is not allowed; use a duration such as \"10s\"", n.describe())
}

func (d *decoder) add(at place, path, format string, args ...any) {
	d.problems = append(d.problems, problemAt(at, path, format, args...)...)
}
