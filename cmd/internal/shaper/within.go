package shaper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// BranchVariable is what run tells a program in its environment: its branch. It is
// believed only where the kernel does not say better.
const BranchVariable = "VIFSHAPE_BRANCH"

// housing are the ways by whose hierarchies of cgroups processes may be in a home.
var housing = []bind.Way{bind.WayBPF, bind.WayNetCls}

// within refuses a branch that the calling process would leave its own one for, or
// put others into: from a branch's home it only goes on to that branch or below.
// What it goes by is the cgroup, in each hierarchy that binds. Bindings of the
// policy do not count: a user's session may be bound, and its owner is no prisoner.
func (m *Machine) within(ctx context.Context, to hierarchy.Path) error {
	self, err := cgroupfs.ReadSelf()
	if err != nil {
		return err
	}
	for _, way := range housing {
		target, whole, err := self.Own(way)
		if err != nil {
			return err
		}
		at, of, from := hierarchy.Path(""), "", ""
		ns, branch, ok := home.Parse(target)
		switch {
		case ok && ns != m.Store.NetNS:
			at, of = branch, " of another network namespace"
		case ok:
			at = m.Deepest(branch)
		case !whole:
			var hidden hierarchy.Path
			if at, hidden, err = m.confined(ctx, way); err != nil {
				return err
			}
			if at == "" {
				at, from = hierarchy.Path(os.Getenv(BranchVariable)), ", as "+BranchVariable+" says"
			}
			if at == "" && hidden != "" {
				return fmt.Errorf("%s: this process may be in branch %s, and cannot tell: its cgroup namespace hides the cgroups above its own: call vifshape from outside of it", to, hidden)
			}
		}
		if at != "" && (of != "" || !to.Below(at)) {
			return fmt.Errorf("%s: this process is in branch %s%s%s, from where programs go only to that branch and below: call vifshape from outside of it", to, at, of, from)
		}
	}
	return nil
}

// branch is the branch that the calling process was put into, as far as the kernel
// shows; empty: none.
func (m *Machine) branch() (hierarchy.Path, error) {
	self, err := cgroupfs.ReadSelf()
	if err != nil {
		return "", err
	}
	for _, way := range housing {
		target, _, err := self.Own(way)
		if err != nil {
			return "", err
		}
		if ns, branch, ok := home.Parse(target); ok && ns == m.Store.NetNS {
			return m.Deepest(branch), nil
		}
	}
	return "", nil
}

// Deepest is the branch whose home is at p, or the next above. A program may make cgroups
// below its home, which are no branches. Where there is no branch, it is p: then nothing is
// known.
func (m *Machine) Deepest(p hierarchy.Path) hierarchy.Path {
	r, err := m.Store.Load(p.Interface())
	if err != nil {
		return p
	}
	for q := p; q.Parent() != ""; q = q.Parent() {
		branch, ok := r.IDs.Called(q)
		if _, _, there := r.IDs.Find(branch); ok && there {
			return branch
		}
	}
	return p
}

// confined is the branch that the root of this cgroup namespace is bound to, as
// that of a program is that run has started. Empty: none, or it cannot be read. Hidden
// is one that what lies above that root may be bound to, empty where nothing is.
func (m *Machine) confined(ctx context.Context, way bind.Way) (at, hidden hierarchy.Path, err error) {
	names, err := m.Store.Interfaces()
	if err != nil {
		return "", "", err
	}
	for _, n := range names {
		x, err := m.Interface(n, "")
		if err != nil {
			continue // gone, or damaged: it is reported when it is used
		}
		var s hierarchy.State
		err = errors.Join(x.Binder.Read(ctx, &s), x.Binder.Close())
		if errors.Is(err, caps.ErrNotPrivileged) {
			return "", "", nil // and so it can put nobody anywhere
		}
		if err != nil {
			return "", "", err
		}
		if s.Hook.Way.Tagged() != way.Tagged() {
			continue
		}
		if s.Hook.Way.Tagged() {
			hidden = hierarchy.Path(n) // the tag of the root may be any
		}
		for _, b := range s.Bound {
			switch {
			case b.Target == bind.ToCgroup("/"):
				return x.Kernel.Names[b.Class], "", nil
			case b.Target.Kind == bind.TargetCgroupID:
				hidden = x.Kernel.Names[b.Class]
			}
		}
	}
	return "", hidden, nil
}

// Inside is the binding that the calling process sends by on an interface, the
// zero Bound for none, from the bindings in force or, without privileges, from
// those of the last apply and the homes. A binding without a target is only what
// the environment says.
func (m *Machine) Inside(x *Interface, way bind.Way, all []hierarchy.Bound, blind bool) (hierarchy.Bound, error) {
	if way.Tagged() {
		way = bind.WayNetCls
	} else {
		way = bind.WayBPF
	}
	target, whole, err := cgroupfs.Own(way)
	if err != nil {
		return hierarchy.Bound{}, err
	}
	bound := make(map[bind.Target]hierarchy.Bound, len(all))
	for _, b := range all {
		bound[b.Target] = b
	}
	for dir := target.Name; dir != "" && dir != "."; dir = path.Dir(dir) {
		at := bind.ToCgroup(dir)
		if b, ok := bound[at]; ok {
			return b, nil
		}
		if ns, p, ok := home.Parse(at); ok && blind && ns == m.Store.NetNS && p.Interface() == x.Record.Interface {
			p, ok = x.Record.IDs.Called(p)
			if class, err := x.entry(p); ok && err == nil { // else a cgroup that a program made in its home
				return hierarchy.Bound{Target: at, Class: class, Path: p, From: "run"}, nil
			}
		}
		if dir == "/" {
			break
		}
	}
	if claim := hierarchy.Path(os.Getenv(BranchVariable)); !whole && claim.Interface() == x.Record.Interface {
		if class, err := x.entry(claim); err == nil {
			return hierarchy.Bound{Class: class, Path: claim, From: BranchVariable}, nil
		}
	}
	return bound[bind.ToUser(uint32(os.Geteuid()))], nil
}
