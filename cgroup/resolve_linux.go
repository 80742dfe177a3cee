package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
)

// Pending is a binding whose cgroup, user or interface is not there (yet).
type Pending struct {
	Path    hierarchy.Path // the branch
	Binding hierarchy.Binding
	Reason  string
}

// Resolve finds what the bindings of a tree name on this machine, and the homes
// that its branches have (see [Binder.Home]), which are bound too. What is not
// there is pending, no error: a service may be stopped. An error is what can
// never work, such as one cgroup in two branches.
//
// A unit or slice is one of the system's manager. Those of users' managers and of
// containers, who choose the names of theirs, are bound by their cgroups.
//
// Each class is that of the branch's entry; Path is the entry's.
func (b *Binder) Resolve(t *hierarchy.Tree) ([]hierarchy.Bound, []Pending, error) {
	if err := b.choose(); err != nil {
		return nil, nil, err
	}
	units, err := b.units(t)
	if err != nil {
		return nil, nil, b.wrap(err)
	}
	r := resolution{seen: map[string]claim{}}
	branches := map[hierarchy.Path]*hierarchy.Branch{}
	for br := range t.All() {
		branches[br.Path] = br
		entry := br.Entry()
		if entry == nil {
			continue
		}
		for _, bind := range br.Bind {
			target, reason, err := b.target(bind, units)
			switch {
			case err != nil:
				r.errs = append(r.errs, fmt.Errorf("%s: binding %q: %w", br.Path, bind, err))
			case reason != "":
				r.pending = append(r.pending, Pending{br.Path, bind, reason})
			default:
				r.add(br.Path, entry, target, bind.String())
			}
		}
	}
	homes, err := b.Homes()
	if err != nil {
		return nil, nil, err
	}
	for _, p := range homes {
		if br := branches[p]; br != nil && br != t.Root && br.Entry() != nil { // the interface's is on the way to theirs
			r.add(p, br.Entry(), cgroupTarget+b.homePath(p), "run")
		}
	}
	if tagged(b.way) {
		r.bound = withoutInherited(r.bound)
	}
	return r.bound, r.pending, errors.Join(r.errs...)
}

// claim is who asked for a target first.
type claim struct {
	path hierarchy.Path
	from string
}

type resolution struct {
	bound   []hierarchy.Bound
	pending []Pending
	errs    []error
	seen    map[string]claim
}

func (r *resolution) add(p hierarchy.Path, entry *hierarchy.Branch, target, from string) {
	if first, ok := r.seen[target]; ok {
		if first.path != p {
			r.errs = append(r.errs, fmt.Errorf("%s: binding %q names %s, which %q of %s names already", p, from, target, first.from, first.path))
		}
		return
	}
	r.seen[target] = claim{p, from}
	r.bound = append(r.bound, hierarchy.Bound{Target: target, Class: entry.ID, Path: entry.Path, From: from})
}

// withoutInherited leaves out what has the same class as the nearest binding
// above it: a net_cls tag does not show whether it was inherited.
func withoutInherited(all []hierarchy.Bound) []hierarchy.Bound {
	class := map[string]hierarchy.ClassID{}
	for _, x := range all {
		class[strings.TrimPrefix(x.Target, cgroupTarget)] = x.Class
	}
	return slices.DeleteFunc(all, func(x hierarchy.Bound) bool {
		for p := path.Dir(strings.TrimPrefix(x.Target, cgroupTarget)); p != "/"; p = path.Dir(p) {
			if c, ok := class[p]; ok {
				return c == x.Class
			}
		}
		return false
	})
}

// target is what a binding names, or the reason why there is none at present.
func (b *Binder) target(x hierarchy.Binding, units map[string][]string) (target, reason string, err error) {
	switch x.Kind {
	case hierarchy.BindCgroup:
		id, _, err := b.tree().id(x.Name)
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Sprintf("no such cgroup below %s", b.tree().where), nil
		}
		if err == nil && !tagged(b.way) {
			b.paths[id] = x.Name
		}
		return cgroupTarget + x.Name, "", err
	case hierarchy.BindUnit, hierarchy.BindSlice:
		found := units[x.Name]
		switch {
		case len(found) == 1:
			return cgroupTarget + found[0], "", nil
		case len(found) > 1:
			return "", fmt.Sprintf("%d cgroups bear the name; write one of them: cgroup:%s", len(found), strings.Join(found, ", cgroup:")), nil
		case tagged(b.way):
			return "", "no such cgroup in the net_cls hierarchy, which systemd leaves alone", nil
		}
		return "", fmt.Sprintf("the %s is not running (a user's own or a container's is named by cgroup:/PATH)", x.Kind), nil
	case hierarchy.BindUser:
		if tagged(b.way) {
			return "", "", fmt.Errorf("users can be bound with cgroup v2 only, not with net_cls: %w", ErrNotSupported)
		}
		if uid, err := strconv.ParseUint(x.Name, 10, 32); err == nil {
			return uidTarget + strconv.FormatUint(uid, 10), "", nil
		}
		u, err := user.Lookup(x.Name)
		var unknown user.UnknownUserError
		if errors.As(err, &unknown) {
			return "", "no such user", nil
		}
		if err != nil {
			return "", "", err
		}
		return uidTarget + u.Uid, "", nil
	case hierarchy.BindLink:
		return b.resolveLink(x.Name)
	}
	return "", "", fmt.Errorf("kind %v of binding is not known", x.Kind)
}

// units finds the cgroups of the units and slices that t's bindings name, where
// systemd puts them: at the end of a chain of slices. Below a unit there may be
// others' cgroups with the same names: what a user's manager and a container make
// of what was delegated to them claims nothing here.
func (b *Binder) units(t *hierarchy.Tree) (map[string][]string, error) {
	units := map[string][]string{}
	for br := range t.All() {
		for _, x := range br.Bind {
			if x.Kind == hierarchy.BindUnit || x.Kind == hierarchy.BindSlice {
				units[x.Name] = nil
			}
		}
	}
	if len(units) == 0 {
		return nil, nil
	}
	err := b.tree().walk("/", func(p string) error {
		if p == "/" {
			return nil
		}
		name := path.Base(p)
		if _, wanted := units[name]; !wanted {
			name = unescape(name)
		}
		stem, slice := strings.CutSuffix(name, ".slice")
		if slice && sliceAbove(stem) != unescape(strings.TrimPrefix(path.Base(path.Dir(p)), "/")) {
			return fs.SkipDir // called like a slice, and none of systemd's
		}
		if _, wanted := units[name]; wanted {
			units[name] = append(units[name], p)
		}
		if !slice {
			return fs.SkipDir
		}
		return nil
	})
	return units, err
}

// sliceAbove is the slice in which another lies, nothing for one at the top: the
// name says it (slice_build_parent_slice, src/basic/unit-name.c, systemd 252).
func sliceAbove(stem string) string {
	i := strings.LastIndexByte(stem, '-')
	if i < 0 {
		return ""
	}
	return stem[:i] + ".slice"
}
