package record

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/foreign"
)

// decode reads what encoding/json has written of a record. That package takes longer to get
// to know these types, with each start of the program, than to read what an ordinary record
// has in them: here it reads only what few records have.
func (r *Record) decode(b []byte) error {
	if !json.Valid(b) {
		var none json.RawMessage
		return json.Unmarshal(b, &none) // says why
	}
	return members(b, func(name string, v []byte) (err error) {
		switch name {
		case "version":
			r.Version, err = number[int](v)
		case "interface":
			r.Interface, err = text[string](v)
		case "ifindex":
			r.Index, err = number[uint32](v)
		case "formerly":
			r.Formerly, err = list(v, text[string])
		case "policy":
			r.Policy, err = text[string](v)
		case "selector":
			r.Selector, err = text[hierarchy.Selector](v)
		case "binding":
			r.Binding, err = text[string](v)
		case "way":
			r.Way, err = text[bind.Way](v)
		case "receives":
			r.Receives, err = truth(v)
		case "mtu":
			r.MTU, err = number[int](v)
		case "link":
			err = unmarshal(v, &r.Link)
		case "matches":
			r.Matches, err = truth(v)
		case "ids":
			r.IDs, err = decodeIDs(v)
		case "order":
			r.Order, err = list(v, text[hierarchy.Path])
		case "bindings":
			r.Bindings, err = list(v, decodeBinding)
		case "bound":
			r.Bound, err = list(v, decodeBound)
		case "former":
			r.Former, err = decodeFormer(v)
		case "delegated":
			r.Delegated, err = list(v, decodeDelegated)
		case "added":
			err = json.Unmarshal(v, &r.Added)
		case "serial":
			r.Serial, err = number[uint32](v)
		case "applied":
			err = r.Applied.UnmarshalJSON(v)
		case "by":
			r.By, err = text[string](v)
		case "boot":
			r.Boot, err = number[time.Duration](v)
		case "spec": // of version 3
			err = json.Unmarshal(v, &r.Spec)
		}
		return err
	})
}

func decodeIDs(b []byte) (ids hierarchy.IDs, err error) {
	err = members(b, func(name string, v []byte) (err error) {
		switch name {
		case "minors":
			ids.Minors = map[string]uint16{}
			return members(v, func(key string, v []byte) (err error) {
				ids.Minors[key], err = number[uint16](v)
				return err
			})
		case "retired":
			ids.Retired, err = list(v, decodeRetired)
		case "named":
			err = json.Unmarshal(v, &ids.Named)
		}
		return err
	})
	return ids, err
}

func decodeRetired(b []byte) (x hierarchy.Retired, err error) {
	err = members(b, func(name string, v []byte) (err error) {
		switch name {
		case "key":
			x.Key, err = text[string](v)
		case "minor":
			x.Minor, err = number[uint16](v)
		}
		return err
	})
	return x, err
}

func decodeBinding(b []byte) (x Binding, err error) {
	err = members(b, func(name string, v []byte) (err error) {
		switch name {
		case "path":
			x.Path, err = text[hierarchy.Path](v)
		case "binding":
			err = unmarshal(v, &x.Binding)
		case "at_runtime":
			x.AtRuntime, err = truth(v)
		case "limit":
			x.Limit, err = truth(v)
		}
		return err
	})
	return x, err
}

func decodeBound(b []byte) (x hierarchy.Bound, err error) {
	err = members(b, func(name string, v []byte) (err error) {
		switch name {
		case "target":
			err = unmarshal(v, &x.Target)
		case "classid":
			err = unmarshal(v, &x.Class)
		case "path":
			x.Path, err = text[hierarchy.Path](v)
		case "open":
			x.Open, err = truth(v)
		case "stays":
			x.Stays, err = truth(v)
		case "from":
			x.From, err = text[string](v)
		}
		return err
	})
	return x, err
}

func decodeFormer(b []byte) (x foreign.Former, err error) {
	err = members(b, func(name string, v []byte) (err error) {
		switch name {
		case "kind":
			x.Kind, err = text[string](v)
		case "handle":
			err = unmarshal(v, &x.Handle)
		case "options":
			var s string
			if s, err = text[string](v); err == nil {
				x.Options, err = base64.StdEncoding.DecodeString(s)
			}
		case "partial":
			x.Partial, err = truth(v)
		}
		return err
	})
	return x, err
}

func decodeDelegated(b []byte) (x Delegated, err error) {
	err = members(b, func(name string, v []byte) (err error) {
		switch name {
		case "path":
			x.Path, err = text[hierarchy.Path](v)
		case "to":
			x.To, err = list(v, func(v []byte) (to bind.Delegate, err error) {
				err = unmarshal(v, &to)
				return to, err
			})
		}
		return err
	})
	return x, err
}

// text is a string.
func text[T ~string](v []byte) (T, error) {
	if v[0] != '"' {
		return "", fmt.Errorf("%s is no text", v)
	}
	if bytes.IndexByte(v, '\\') < 0 && utf8.Valid(v) {
		return T(v[1 : len(v)-1]), nil
	}
	var s string
	err := json.Unmarshal(v, &s)
	return T(s), err
}

// unmarshal is for what has a form of its own in text.
func unmarshal(v []byte, into encoding.TextUnmarshaler) error {
	s, err := text[string](v)
	if err == nil {
		err = into.UnmarshalText([]byte(s))
	}
	return err
}

func number[T int | time.Duration | uint16 | uint32](v []byte) (T, error) {
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil || int64(T(n)) != n {
		return 0, fmt.Errorf("%s is not the number that it should be", v)
	}
	return T(n), nil
}

func truth(v []byte) (bool, error) {
	if s := string(v); s != "true" && s != "false" {
		return false, fmt.Errorf("%s is neither true nor false", v)
	}
	return v[0] == 't', nil
}

// list is an array of what one reads.
func list[T any](b []byte, one func(v []byte) (T, error)) ([]T, error) {
	all := []T{}
	err := split(b, '[', func(_, v []byte) error {
		x, err := one(v)
		all = append(all, x)
		return err
	})
	return all, err
}

// members calls f for those of an object, but for null, which stands for nothing.
func members(b []byte, f func(name string, v []byte) error) error {
	return split(b, '{', func(quoted, v []byte) error {
		name, err := text[string](quoted)
		if err != nil || string(v) == "null" {
			return err
		}
		return f(name, v)
	})
}

// split takes an object or an array apart, of JSON that is known to be well-formed.
func split(b []byte, open byte, f func(name, v []byte) error) error {
	b = blank(b)
	if b[0] != open {
		return fmt.Errorf("%.40s does not begin with %c", b, open)
	}
	for b = blank(b[1:]); b[0] != open+2; { // ] and }
		if b[0] == ',' {
			b = blank(b[1:])
		}
		var name []byte
		if open == '{' {
			name, b = cut(b)
			b = blank(blank(b)[1:]) // the colon
		}
		var v []byte
		v, b = cut(b)
		if err := f(name, v); err != nil {
			return err
		}
		b = blank(b)
	}
	return nil
}

func blank(b []byte) []byte { return bytes.TrimLeft(b, " \t\r\n") }

// cut takes the value off that b begins with.
func cut(b []byte) (v, rest []byte) {
	depth := 0
	for i := 0; ; {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			i++
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		case ',', ':', ' ', '\t', '\r', '\n':
			i++
		default: // a number or a word
			n := bytes.IndexAny(b[i:], ",:]} \t\r\n")
			if n < 0 {
				n = len(b) - i
			}
			i += n
		}
		if depth == 0 {
			return b[:i], b[i:]
		}
	}
}
