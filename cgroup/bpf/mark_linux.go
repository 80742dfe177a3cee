package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/vifshape/vifshape/cgroup/iface"
)

// Ingress is where programs sit on the interfaces of a network namespace whose packets
// the shaped one sends on. What is done for one shaped interface is not seen by another's.
type Ingress interface {
	// AttachIngress puts a tc program at the ingress hook of another interface of
	// the same network namespace, in place of the one that it put there before for
	// this one. HasIngress says whether it is there, an error that it cannot be, and
	// DetachIngress removes it; none is no error.
	AttachIngress(port string, progFD int, name string) error
	HasIngress(port string) (bool, error)
	DetachIngress(port string) error
}

// Marker is the program of mark.bpf.c, which a bound interface has at its ingress while
// it is a port of a bridge or belongs to another interface in some other way: from there
// on its packets look as if that one had brought them in. It has no maps, so that one
// does for all interfaces.
type Marker struct {
	hook   Ingress
	netNS  int             // descriptor; 0: the caller's
	prog   *ebpf.Program   // nil until it is needed
	hidden map[string]bool // interfaces that should be marked and cannot be
}

// NewMarker makes the marker of an interface in a network namespace. Nothing is loaded yet.
func NewMarker(hook Ingress, netNS int) *Marker {
	return &Marker{hook: hook, netNS: netNS, hidden: map[string]bool{}}
}

// Close lets go of the program, which stays where it is attached.
func (m *Marker) Close() error {
	if m.prog == nil {
		return nil
	}
	return m.prog.Close()
}

func (m *Marker) load() error {
	if m.prog != nil {
		return nil
	}
	spec, err := loadMark()
	if err != nil {
		return err
	}
	m.prog, err = ebpf.NewProgram(spec.Programs[markProgVifMark])
	return err
}

// Missing says whether the program is not on an interface that should have it.
func (m *Marker) Missing(l iface.Link) bool {
	if l.Master == 0 || m.hidden[l.Name] {
		return false
	}
	on, err := m.hook.HasIngress(l.Name)
	return err == nil && !on
}

// Put puts the program onto an interface that should have it. That it cannot is no error
// of a binding, which still holds where the interface is no port of a bridge; why says it.
func (m *Marker) Put(name string) (why string, err error) {
	l, err := iface.Get(m.netNS, 0, name)
	if err != nil || l.Master == 0 {
		return "", err
	}
	err = m.load()
	if err == nil {
		err = m.hook.AttachIngress(l.Name, m.prog.FD(), markProgVifMark)
	}
	if err != nil {
		m.hidden[l.Name] = true
		return fmt.Sprintf("%s: what it brings in and the interface that it belongs to passes on goes to the rest: %v", l.Name, err), nil
	}
	return "", nil
}

// Take takes the program away from an interface, which may be gone.
func (m *Marker) Take(name string) error {
	l, err := iface.Get(m.netNS, 0, name)
	if err == nil {
		if err = m.hook.DetachIngress(l.Name); err == nil {
			return nil
		}
	}
	if _, gone := iface.Get(m.netNS, 0, name); errors.Is(gone, iface.ErrNone) {
		return nil
	}
	return err
}
