//go:build linux

package tc

import (
	"encoding/binary"
	"errors"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// errMalformed says that a message of the kernel is cut short. It cannot happen
// on a sound kernel.
var errMalformed = errors.New("message of the kernel is malformed")

// An encoder appends what a message consists of to a buffer.
type encoder struct{ b []byte }

func (e *encoder) uint8(v uint8)   { e.b = append(e.b, v) }
func (e *encoder) uint16(v uint16) { e.b = binary.NativeEndian.AppendUint16(e.b, v) }
func (e *encoder) uint32(v uint32) { e.b = binary.NativeEndian.AppendUint32(e.b, v) }
func (e *encoder) uint64(v uint64) { e.b = binary.NativeEndian.AppendUint64(e.b, v) }

// attr appends an attribute whose content put writes.
func (e *encoder) attr(typ uint16, put func()) {
	at := len(e.b)
	e.uint16(0)
	e.uint16(typ)
	put()
	binary.NativeEndian.PutUint16(e.b[at:], uint16(len(e.b)-at))
	for len(e.b)%4 != 0 {
		e.uint8(0)
	}
}

func (e *encoder) attr8(typ uint16, v uint8)   { e.attr(typ, func() { e.uint8(v) }) }
func (e *encoder) attr32(typ uint16, v uint32) { e.attr(typ, func() { e.uint32(v) }) }
func (e *encoder) attr64(typ uint16, v uint64) { e.attr(typ, func() { e.uint64(v) }) }

func (e *encoder) attrString(typ uint16, s string) {
	e.attr(typ, func() { e.b = append(append(e.b, s...), 0) })
}

// nest appends an attribute with the flag of those that hold attributes. The
// kernel's strict parsers want it; the others, and those of options that are a
// plain structure, do not look at it.
func (e *encoder) nest(typ uint16, put func()) { e.attr(typ|netlink.Nested, put) }

// tcMsg is struct tcmsg of linux/rtnetlink.h.
type tcMsg struct {
	index                uint32
	handle, parent, info uint32
}

const sizeofTcMsg = 20

func (e *encoder) tcMsg(m tcMsg) {
	e.uint32(unix.AF_UNSPEC)
	e.uint32(m.index)
	e.uint32(m.handle)
	e.uint32(m.parent)
	e.uint32(m.info)
}

func decodeTcMsg(b []byte) (m tcMsg, attrs []byte, err error) {
	if len(b) < sizeofTcMsg {
		return m, nil, errMalformed
	}
	u := binary.NativeEndian.Uint32
	return tcMsg{u(b[4:]), u(b[8:]), u(b[12:]), u(b[16:])}, b[sizeofTcMsg:], nil
}

// eachAttr calls f for every attribute of b. The flags of the type are removed.
func eachAttr(b []byte, f func(typ uint16, v []byte) error) error {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return errMalformed
		}
		if err := f(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[4:n]); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	if len(b) != 0 {
		return errMalformed
	}
	return nil
}

// get8 is the number in an attribute.
func get8(v []byte) (uint8, error) {
	if len(v) < 1 {
		return 0, errMalformed
	}
	return v[0], nil
}

// get32 is the number in an attribute.
func get32(v []byte) (uint32, error) {
	if len(v) < 4 {
		return 0, errMalformed
	}
	return binary.NativeEndian.Uint32(v), nil
}

// get64 is the number in an attribute.
func get64(v []byte) (uint64, error) {
	if len(v) < 8 {
		return 0, errMalformed
	}
	return binary.NativeEndian.Uint64(v), nil
}

// getString is the text in an attribute, up to its first zero byte.
func getString(v []byte) string {
	for i, c := range v {
		if c == 0 {
			return string(v[:i])
		}
	}
	return string(v)
}
