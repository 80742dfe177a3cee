package cgroup

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/vifshape/vifshape/cgroup/iface"
)

// marker is the program of bpf/mark.bpf.c, which a bound interface has at its
// ingress while it is a port of a bridge or belongs to another interface in some
// other way: from there on its packets look as if that one had brought them in. It
// has no maps, so that one does for all interfaces.
type marker struct {
	prog *ebpf.Program // nil until it is needed
}

func (m *marker) close() error {
	if m.prog == nil {
		return nil
	}
	return m.prog.Close()
}

func (m *marker) load() error {
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

// unmarked says whether the program is missing on an interface that should have it.
func (b *Binder) unmarked(l iface.Link) bool {
	if l.Master == 0 || b.hidden[l.Name] {
		return false
	}
	on, err := b.cfg.Hook.HasIngress(l.Name)
	return err == nil && !on
}

// mark puts the program onto an interface that should have it. That it cannot is no
// error of a binding, which still holds where the interface is no port of a bridge;
// Warn is told.
func (b *Binder) mark(name string) error {
	l, err := iface.Get(b.cfg.NetNSFD, 0, name)
	if err != nil || l.Master == 0 {
		return err
	}
	err = b.marker.load()
	if err == nil {
		err = b.cfg.Hook.AttachIngress(l.Name, b.marker.prog.FD(), markProgVifMark)
	}
	if err != nil {
		if b.hidden == nil {
			b.hidden = map[string]bool{}
		}
		b.hidden[l.Name] = true
		b.cfg.Warn(fmt.Sprintf("%s: what it brings in and the interface that it belongs to passes on goes to the rest: %v", l.Name, err))
	}
	return nil
}

// unmark takes the program away from an interface, which may be gone.
func (b *Binder) unmark(name string) error {
	l, err := iface.Get(b.cfg.NetNSFD, 0, name)
	if err == nil {
		if err = b.cfg.Hook.DetachIngress(l.Name); err == nil {
			return nil
		}
	}
	if _, gone := iface.Get(b.cfg.NetNSFD, 0, name); errors.Is(gone, iface.ErrNone) {
		return nil
	}
	return err
}
