// Package schema writes values as JSON for programs, every quantity as a number beside
// its text, and says which fields there are. It goes by the types and the tags of
// encoding/json.
package schema

import (
	"bytes"
	"encoding"
	"encoding/json"
	"io"
	"reflect"
	"strings"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

// quantities are the types that are written twice: as text under the name of the
// field, and as a number under that name and what follows it.
var quantities = []struct {
	of     reflect.Type
	suffix string
	number func(reflect.Value) any
}{
	{reflect.TypeFor[hierarchy.Bandwidth](), "_bps", func(v reflect.Value) any { return v.Uint() }},
	{reflect.TypeFor[hierarchy.Size](), "_bytes", func(v reflect.Value) any { return v.Uint() }},
	{reflect.TypeFor[time.Duration](), "_seconds", func(v reflect.Value) any { return time.Duration(v.Int()).Seconds() }},
}

// Write writes a value, indented.
func Write(w io.Writer, v any) error {
	b := &writer{fields: map[reflect.Type][]field{}}
	if err := b.write(reflect.ValueOf(v)); err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b.Bytes(), "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err := out.WriteTo(w)
	return err
}

// writer is a value being written.
type writer struct {
	bytes.Buffer
	fields map[reflect.Type][]field // of the structs met so far
}

func (b *writer) write(v reflect.Value) error {
	switch {
	case !v.IsValid():
		return b.leaf(nil)
	case text(v.Type()), v.Type() == reflect.TypeFor[time.Time]():
		return b.leaf(v.Interface())
	case v.Type() == reflect.TypeFor[time.Duration]():
		return b.leaf(v.Interface().(time.Duration).String())
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		return b.write(v.Elem())
	case reflect.Slice:
		if v.IsNil() {
			return b.leaf(nil)
		}
		b.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := b.write(v.Index(i)); err != nil {
				return err
			}
		}
		b.WriteByte(']')
		return nil
	case reflect.Struct:
		return b.object(v)
	}
	return b.leaf(v.Interface())
}

// object writes a struct. Fields of embedded ones are its own.
func (b *writer) object(v reflect.Value) error {
	first := true
	add := func(name string, write func() error) error {
		if !first {
			b.WriteByte(',')
		}
		first = false
		if err := b.leaf(name); err != nil {
			return err
		}
		b.WriteByte(':')
		return write()
	}
	b.WriteByte('{')
	all, ok := b.fields[v.Type()]
	if !ok {
		all = fields(v.Type())
		b.fields[v.Type()] = all
	}
	for _, f := range all {
		x, err := v.FieldByIndexErr(f.index)
		if err != nil || f.optional && empty(x, f.zero) {
			continue // of an embedded one that is not there
		}
		if err := add(f.name, func() error { return b.write(x) }); err != nil {
			return err
		}
		if x.Kind() == reflect.Pointer {
			x = x.Elem()
		}
		for _, q := range quantities {
			if x.IsValid() && x.Type() == q.of {
				if err := add(f.name+q.suffix, func() error { return b.leaf(q.number(x)) }); err != nil {
					return err
				}
			}
		}
	}
	b.WriteByte('}')
	return nil
}

// leaf writes what has no fields.
func (b *writer) leaf(v any) error {
	enc := json.NewEncoder(&b.Buffer)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1) // the end of the line
	return nil
}

// text says whether values of a type are written as text.
func text(t reflect.Type) bool {
	return t.Kind() != reflect.Pointer && t.Kind() != reflect.Interface && t.Implements(reflect.TypeFor[encoding.TextMarshaler]())
}

// field is one of a struct's, with those of embedded ones.
type field struct {
	name     string
	index    []int
	typ      reflect.Type
	optional bool // absent where it is empty
	zero     bool // absent where it is the zero value, as with omitzero
}

func fields(t reflect.Type) []field {
	var all []field
	for _, f := range reflect.VisibleFields(t) {
		tag, ok := f.Tag.Lookup("json")
		if !f.IsExported() || f.Anonymous && !ok || tag == "-" {
			continue
		}
		name, options, _ := strings.Cut(tag, ",")
		if name == "" {
			name = f.Name
		}
		zero := options == "omitzero"
		all = append(all, field{name, f.Index, f.Type, zero || options == "omitempty", zero})
	}
	return all
}

func empty(v reflect.Value, zero bool) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map, reflect.String:
		return v.Len() == 0
	case reflect.Struct:
		return zero && v.IsZero()
	}
	return v.IsZero()
}
