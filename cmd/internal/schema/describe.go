package schema

import (
	"reflect"
	"strings"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

// Object is what is written for a struct: the output of a command, or a part of one.
type Object struct {
	Name   string
	Fields []Field
}

// Field is one of an object.
type Field struct {
	Name string
	Type string // "text", "number", "bandwidth", "list of branch" ..., or the name of an object
	// Optional says that it is absent where there is nothing to say.
	Optional bool
}

// Output is a value of what a command writes.
type Output struct {
	Command string
	Value   any
}

// Names are those of types whose own do not say it. One interface stands for one of
// several.
type Names map[reflect.Type]string

// Describe is the outputs and their parts, each part once, where it is first met. Its
// name is that of its type, without View or JSON.
func Describe(outputs []Output, names Names, parts ...any) []Object {
	d := &description{names: names, seen: map[reflect.Type]bool{}}
	for _, o := range outputs {
		t := reflect.TypeOf(o.Value)
		d.seen[t] = true
		d.object(o.Command, t)
	}
	for _, p := range parts {
		d.part(reflect.TypeOf(p))
	}
	return d.all
}

type description struct {
	names Names
	seen  map[reflect.Type]bool
	all   []Object
}

func (d *description) object(name string, t reflect.Type) {
	i := len(d.all)
	d.all = append(d.all, Object{Name: name})
	var list []Field
	for _, f := range fields(t) {
		list = append(list, Field{f.name, d.typ(f.typ), f.optional || f.typ.Kind() == reflect.Pointer})
	}
	d.all[i].Fields = list
}

func (d *description) part(t reflect.Type) {
	if !d.seen[t] {
		d.seen[t] = true
		d.object(d.name(t), t)
	}
}

func (d *description) name(t reflect.Type) string {
	if n, ok := d.names[t]; ok {
		return n
	}
	n := strings.TrimSuffix(strings.TrimSuffix(t.Name(), "View"), "JSON")
	return strings.ToLower(n[:1]) + n[1:]
}

func (d *description) typ(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[hierarchy.Bandwidth]():
		return "bandwidth"
	case t == reflect.TypeFor[hierarchy.Size]():
		return "size"
	case t == reflect.TypeFor[time.Duration]():
		return "time"
	case text(t), t.Kind() == reflect.String:
		return "text"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return d.typ(t.Elem())
	case reflect.Slice:
		return "list of " + d.typ(t.Elem())
	case reflect.Bool:
		return "true or false"
	case reflect.Struct:
		d.part(t)
		return d.name(t)
	case reflect.Interface:
		return d.name(t)
	}
	return "number"
}
