//go:build linux

package rtnl

import (
	"encoding/binary"

	"github.com/mdlayher/netlink"
)

// Encoder appends what a message consists of to a buffer.
type Encoder struct{ B []byte }

// Uint8, Uint16, Uint32 and Uint64 append a number as it lies in memory.
func (e *Encoder) Uint8(v uint8)   { e.B = append(e.B, v) }
func (e *Encoder) Uint16(v uint16) { e.B = binary.NativeEndian.AppendUint16(e.B, v) }
func (e *Encoder) Uint32(v uint32) { e.B = binary.NativeEndian.AppendUint32(e.B, v) }
func (e *Encoder) Uint64(v uint64) { e.B = binary.NativeEndian.AppendUint64(e.B, v) }

// Attr appends an attribute whose content put writes.
func (e *Encoder) Attr(typ uint16, put func()) {
	at := len(e.B)
	e.Uint16(0)
	e.Uint16(typ)
	put()
	binary.NativeEndian.PutUint16(e.B[at:], uint16(len(e.B)-at))
	for len(e.B)%4 != 0 {
		e.Uint8(0)
	}
}

// Attr8, Attr32 and Attr64 append an attribute that is a number.
func (e *Encoder) Attr8(typ uint16, v uint8)   { e.Attr(typ, func() { e.Uint8(v) }) }
func (e *Encoder) Attr32(typ uint16, v uint32) { e.Attr(typ, func() { e.Uint32(v) }) }
func (e *Encoder) Attr64(typ uint16, v uint64) { e.Attr(typ, func() { e.Uint64(v) }) }

// AttrString appends an attribute that is a text.
func (e *Encoder) AttrString(typ uint16, s string) {
	e.Attr(typ, func() { e.B = append(append(e.B, s...), 0) })
}

// Nest appends an attribute with the flag of those that hold attributes. The
// kernel's strict parsers want it; the others, and those of options that are a
// plain structure, do not look at it.
func (e *Encoder) Nest(typ uint16, put func()) { e.Attr(typ|netlink.Nested, put) }

// EachAttr calls f for every attribute of b. The flags of the type are removed.
func EachAttr(b []byte, f func(typ uint16, v []byte) error) error {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return ErrMalformed
		}
		if err := f(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[4:n]); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	if len(b) != 0 {
		return ErrMalformed
	}
	return nil
}

// Uint8 is the number in an attribute.
func Uint8(v []byte) (uint8, error) {
	if len(v) < 1 {
		return 0, ErrMalformed
	}
	return v[0], nil
}

// Uint32 is the number in an attribute.
func Uint32(v []byte) (uint32, error) {
	if len(v) < 4 {
		return 0, ErrMalformed
	}
	return binary.NativeEndian.Uint32(v), nil
}

// Uint64 is the number in an attribute.
func Uint64(v []byte) (uint64, error) {
	if len(v) < 8 {
		return 0, ErrMalformed
	}
	return binary.NativeEndian.Uint64(v), nil
}

// String is the text in an attribute, up to its first zero byte.
func String(v []byte) string {
	for i, c := range v {
		if c == 0 {
			return string(v[:i])
		}
	}
	return string(v)
}
