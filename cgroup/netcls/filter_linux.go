package netcls

import (
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Hook is where the kernel's own cgroup classifier sits on one network interface.
type Hook interface {
	AttachCgroupFilter() error
	CgroupFilter() (bool, error)
	DetachCgroupFilter() error
}

// Filter is that classifier, a [way.Classifier]. It reads tags.
type Filter struct {
	Hook Hook
	on   bool
}

// Probe implements [way.Classifier].
func (f *Filter) Probe(bind.Way) (on bool, err error) { return false, nil }

// Read implements [way.Classifier].
func (f *Filter) Read() (w bind.Way, v uint32, err error) {
	if f.on, err = f.Hook.CgroupFilter(); f.on {
		return bind.WayClsCgroup, way.Version, err
	}
	return bind.WayNone, 0, err
}

// Attach implements [way.Classifier].
func (f *Filter) Attach(_ bind.Way, v uint32, _ bool, fill func()) error {
	if err := way.Known(v); err != nil {
		return err
	}
	fill()
	err := f.Hook.AttachCgroupFilter()
	f.on = f.on || err == nil
	return err
}

// Detach implements [way.Classifier].
func (f *Filter) Detach() error {
	if !f.on {
		return nil
	}
	f.on = false
	return f.Hook.DetachCgroupFilter()
}

// Before implements [way.Classifier].
func (f *Filter) Before(uint32) ([]way.Program, error) { return nil, nil }
