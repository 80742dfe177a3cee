package shaper

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// fromHome has a limit begin on the interface in whose home a process is already: its own
// home is below that, so that the process stays in both.
func (m *Machine) fromHome(l *Limit) error {
	pids := l.PIDs
	if l.Own {
		pids = []int{os.Getpid()}
	}
	for _, pid := range pids {
		for _, w := range housing {
			at, _, err := cgroupfs.Of(w, pid)
			if err != nil {
				continue // it has ended, which is told where it is put into the limit
			}
			for _, t := range at {
				ns, p, ok := home.Parse(t)
				if !ok || ns != m.Store.NetNS {
					continue
				}
				r, err := m.Store.Load(p.Interface())
				if err != nil {
					return err
				}
				i := slices.Index(l.On, p.Interface())
				switch {
				case r.Policy == "":
				case i < 0:
					return fmt.Errorf("process %d is in %s, and would leave that for a limit on other interfaces alone: write --on %s --on %s", pid, p, p.Interface(), strings.Join(l.On, " --on "))
				default:
					l.On = slices.Insert(slices.Delete(slices.Clone(l.On), i, i+1), 0, p.Interface())
				}
			}
		}
	}
	return nil
}

// above is the branch below which a limit comes: the one that carries without it what it is
// put on, so that nothing gets out of a branch by it.
func (m *Machine) above(ctx context.Context, x *Interface, l *Limit) (hierarchy.Path, error) {
	top := hierarchy.Path(x.Record.Interface)
	if x.Record.Policy == "" {
		return top, nil
	}
	if l.Pod != "" {
		now, err := m.Store.Pods()
		if i := slices.IndexFunc(now, func(p record.Pod) bool { return p.ID == l.Pod }); i >= 0 {
			return podParent(&now[i].Pod, x.Record, ""), nil
		}
		return top, err
	}
	var s hierarchy.State
	if err := x.Binder.Read(ctx, &s); err != nil {
		return "", err
	}
	bound := make(map[bind.Target]hierarchy.Bound, len(s.Bound))
	for _, b := range s.Bound {
		bound[b.Target] = b
	}
	carriers := map[hierarchy.Path]bool{}
	carried := func(t, user bind.Target) {
		b, ok := bound[t]
		for dir := t.Name; !ok && t.Kind == bind.TargetCgroup && dir != "/" && dir != "."; dir = path.Dir(dir) {
			b, ok = bound[bind.ToCgroup(dir)]
		}
		if !ok {
			b, ok = bound[user]
		}
		at := top
		if ok {
			if at = x.BranchOf(b.Class); at.Base() == hierarchy.RestName {
				at = at.Parent()
			}
		}
		carriers[at] = true
	}
	switch {
	case l.Own || len(l.PIDs) > 0 || l.Program != "":
		pids := l.PIDs
		if l.Own {
			pids = []int{os.Getpid()}
		}
		way := bind.WayBPF
		if x.Record.Way.Tagged() {
			way = bind.WayNetCls
		}
		for _, pid := range pids {
			at, _, err := cgroupfs.Of(way, pid)
			uid, failed := owner(pid)
			if failed != nil {
				return "", failed // it has ended
			}
			if err != nil {
				return "", err
			}
			for _, t := range at {
				carried(t, bind.ToUser(uid))
			}
		}
	default:
		r, err := x.Binder.Resolve(ctx, []resolve.Branch{{Path: top, Home: top, Entry: top, Class: hierarchy.ID(hierarchy.RootMinor), Bind: l.Bind}}, nil)
		if err != nil {
			return "", err
		}
		for _, b := range r.Bound {
			if slices.ContainsFunc(l.Bind, func(of bind.Binding) bool { return of.String() == b.From }) {
				carried(b.Target, bind.Target{})
			}
		}
		for _, b := range x.Record.Bindings { // what is not there yet may be bound nevertheless
			if slices.Contains(l.Bind, b.Binding) {
				carriers = map[hierarchy.Path]bool{b.Path: true}
			}
		}
	}
	switch len(carriers) {
	case 0:
		return top, nil
	case 1:
		for p := range carriers {
			return p, nil
		}
	}
	var names []hierarchy.Path
	for p := range carriers {
		names = append(names, p)
	}
	slices.Sort(names)
	return "", fmt.Errorf("%s is in several branches of %s, %v: limit what is in each by itself", l.Limit, top, names)
}

// owner is the user of a process.
func owner(pid int) (uint32, error) {
	var st unix.Stat_t
	err := unix.Stat(fmt.Sprintf("/proc/%d", pid), &st)
	if err == unix.ENOENT {
		err = unix.ESRCH
	}
	if err != nil {
		err = fmt.Errorf("process %d: %w", pid, err)
	}
	return st.Uid, err
}
