package hierarchy

import "fmt"

// Direction is the way that packets take through a device.
type Direction uint8

// The directions.
const (
	Send Direction = iota
	Receive
)

var directions = [...]string{"send", "receive"}

// String is the direction in a word.
func (d Direction) String() string {
	if int(d) < len(directions) {
		return directions[d]
	}
	return "unknown"
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler with the form of String.
func (d *Direction) UnmarshalText(t []byte) error {
	for i, name := range directions {
		if name == string(t) {
			*d = Direction(i)
			return nil
		}
	}
	return fmt.Errorf("direction %q is not known", t)
}

// Port is where a tree stands: a device, and the direction of the packets that go
// through the tree. Branches of one path have the same class at every port of a
// device, so that a classifier needs one class a branch. The zero value names no port:
// what belongs to a device as a whole, its classifier and bindings, has it.
type Port struct {
	Device    string    `json:"device"` // an interface's name
	Direction Direction `json:"direction,omitzero"`
}

// String names the port: by the device alone where it sends.
func (p Port) String() string {
	if p.Direction == Send {
		return p.Device
	}
	return p.Device + " (" + p.Direction.String() + ")"
}
