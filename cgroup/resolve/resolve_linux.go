package resolve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/iface"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Branch is a branch with what is bound to it.
type Branch struct {
	Path  hierarchy.Path
	Home  hierarchy.Path    // by which the cgroup of its processes is called, see [hierarchy.IDs.Home]
	Entry hierarchy.Path    // the leaf that the branch's own processes use
	Class hierarchy.ClassID // of that leaf
	Bind  []bind.Binding
}

// Branches are those of a tree that processes can be in, none of which was renamed.
func Branches(t *hierarchy.Tree) []Branch {
	var all []Branch
	for b := range t.All() {
		if entry := b.Entry(); entry != nil {
			all = append(all, Branch{b.Path, b.Path, entry.Path, entry.ID, b.Bind})
		}
	}
	return all
}

// Pending is a binding whose cgroup, user or interface is not there (yet).
type Pending struct {
	Path    hierarchy.Path // the branch
	Binding bind.Binding
	Reason  string
}

// Refused is a binding that cannot be in force, such as one that names a cgroup
// which another one names just as exactly.
type Refused struct {
	Path    hierarchy.Path // the branch
	Binding bind.Binding   // the zero Binding for the cgroup that run has made
	With    bind.Binding   // the other one; the zero Binding where it is for itself
	Err     error          // says all of that
}

// Outside is what a binding in force does not hold: processes in other network
// namespaces, whose packets have no socket here. See the package's documentation.
type Outside struct {
	Path    hierarchy.Path // the branch
	Binding bind.Binding   // the zero Binding for the cgroup that run has made
	PIDs    []int          // of the processes, none where no one knows
	Reason  string
}

// String says how many there are, and why.
func (o Outside) String() string {
	switch n := len(o.PIDs); n {
	case 0:
		return o.Reason
	case 1:
		return "1 process is in another network namespace: " + o.Reason
	default:
		return fmt.Sprintf("%d processes are in another network namespace: %s", n, o.Reason)
	}
}

// Resolution is what bindings come to on this machine.
type Resolution struct {
	// Bound holds what is to be in force. Class and Path are those of a branch's
	// entry.
	Bound   []hierarchy.Bound
	Pending []Pending
	Refused []Refused
	Outside []Outside
	// Again is when to look again although [Watch] was told of nothing: the
	// first process of a cgroup may enter a network namespace yet. 0: never.
	Again time.Duration
	// Cgroups are the paths of those of v2 that bindings name exactly, by their ids.
	Cgroups map[uint64]string
	// Links are the interfaces that lead to where pods have begun, by the pods' ids.
	Links map[string][]Link
}

// Err tells of all that was refused.
func (r *Resolution) Err() error {
	var errs []error
	for _, x := range r.Refused {
		errs = append(errs, x.Err)
	}
	return errors.Join(errs...)
}

// Watch is told what is gone by, each place before it is read, so that who waits for
// changes there misses none: a directory and which of its entries matter when they come
// or go; a file whose content matters, with nil for the entries; or "" for the interfaces
// of the network namespace and which of their names matter. A directory may not be there
// yet: the one above it is told before.
type Watch func(path string, matters func(name string) bool)

// Config is what bindings are resolved for: one interface, whose cgroups are in a tree.
type Config struct {
	Tree      *cgroupfs.Tree
	Interface string
	Formerly  []string // names that it had, by which homes of its branches may be
	// NetNS is the interface's network namespace as [cgroupfs.NetNSKey] names it, empty
	// for the initial one, and NetNSFD a descriptor of it, 0 for the caller's.
	NetNS   string
	NetNSFD int
	// Root is the directory below which the state of container runtimes is looked for, as
	// in /var/lib/docker.
	Root string
	// NoUsers and NoLinks say why users and interfaces cannot be bound, nil when they can.
	NoUsers, NoLinks error
	// Pods tells which pods of Kubernetes run on this machine, as far as the container runtime has
	// told; who is told binds them, and need not watch for that. Nil: none.
	Pods func() ([]Pod, error)
	// Only are ids of pods: what belongs to these is found, and nothing else, whatever else is
	// bound. Nil: everything is.
	Only  []string
	Watch Watch // nil: nobody waits
}

// Resolve finds what the bindings of branches name on this machine, and the homes
// that the branches have (see [home.Homes]), which are bound too. What is not
// there is pending: a service may be stopped. What can never work is refused; so is
// what two bindings name equally exactly, and then neither gets it. An error says
// that the machine could not be read.
//
// With a cgroup the interfaces are bound that lead to the network namespaces of its
// processes; what that does not reach is in Outside.
//
// A unit or slice is one of the system's manager. Those of users' managers and of
// containers, who choose the names of theirs, are bound by their cgroups. No
// pattern stands for the homes of branches and what lies above and below them.
func Resolve(ctx context.Context, cfg Config, branches []Branch) (*Resolution, error) {
	if cfg.Watch == nil {
		cfg.Watch = func(string, func(string) bool) {}
	}
	l := &look{Config: cfg, ctx: ctx}
	units, err := l.units(branches)
	if err != nil {
		return nil, err
	}
	r := resolver{only: cfg.Only != nil, claims: map[bind.Target][]claim{}, won: map[bind.Target]*claim{}}
	r.Cgroups, r.Links = map[uint64]string{}, map[string][]Link{}
	l.found = r.Cgroups
	in := &containers{look: l}
	pods, err := l.place(branches)
	if err != nil {
		return nil, err
	}
	at := map[hierarchy.Path]*Branch{}
	for i := range branches {
		br := &branches[i]
		at[br.Home] = br
		for _, x := range br.Bind {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			var targets []bind.Target
			var missing []string
			var err error
			if x.Kind == bind.Pod {
				targets, missing, err = pods.targets(br, x)
			} else {
				targets, missing, err = l.targets(x, units, in)
			}
			if err != nil {
				r.Refused = append(r.Refused, Refused{Path: br.Path, Binding: x, Err: fmt.Errorf("%s: binding %q: %w", br.Path, x, err)})
			}
			for _, reason := range missing {
				r.Pending = append(r.Pending, Pending{br.Path, x, reason})
			}
			for _, t := range targets {
				r.claim(t, claim{branch: br, binding: x, pod: pods.of[t], from: x.String(), exact: exactness(x, t)})
			}
		}
	}
	for _, name := range append([]string{cfg.Interface}, cfg.Formerly...) {
		homes, err := home.Homes{Tree: cfg.Tree, NetNS: cfg.NetNS, Interface: name}.List()
		if err != nil {
			return nil, err
		}
		for _, p := range homes {
			of := hierarchy.Path(cfg.Interface + strings.TrimPrefix(string(p), name))
			if br := at[of]; br != nil && p.Parent() != "" { // the interface's is on the way to theirs
				r.claim(home.Target(cfg.NetNS, p), claim{branch: br, from: "run", exact: exactly})
			}
		}
	}
	r.settle()
	led, err := l.reach(&r)
	if err != nil {
		return nil, err
	}
	pods.left(&r, led)
	if !cfg.Tree.V2() {
		r.Bound = withoutInherited(r.Bound)
	}
	return &r.Resolution, nil
}

// look is one call of Resolve.
type look struct {
	Config
	ctx   context.Context
	found map[uint64]string
}

// claim is a binding that names a target.
type claim struct {
	target  bind.Target
	branch  *Branch
	binding bind.Binding
	pod     *Pod // that it names a part of, nil: none
	from    string
	exact   int // the higher, the more exactly
}

// exactly is how exact a name is that is no pattern.
const exactly = 1 << 30

// implied is how exactly a service names its socket unit, which may be bound for itself, and a
// pod its cgroup.
const implied = exactly - 1

// exactness is how exactly a binding names a target.
func exactness(x bind.Binding, target bind.Target) int {
	if x.Kind == bind.Pod {
		return implied // its cgroup may be bound for itself
	}
	name := bind.Pattern(x.Name)
	if socket := socketUnit(name); socket != "" && target.Kind == bind.TargetCgroup && strings.HasSuffix(target.Name, ".socket") {
		if name = socket; name.Exact() {
			return implied
		}
	}
	if !name.Exact() {
		return name.Literals()
	}
	return exactly
}

// socketUnit is the unit that opens the sockets of a service, nothing where the name
// is none of a service: they are made in the socket unit's cgroup, which stays while
// the service comes and goes (socket_address_listen_in_cgroup, src/core/socket.c,
// systemd 252).
func socketUnit(service bind.Pattern) bind.Pattern {
	stem, ok := strings.CutSuffix(string(service), ".service")
	if !ok {
		return ""
	}
	return bind.Pattern(stem + ".socket")
}

type resolver struct {
	Resolution
	only   bool                    // what belongs to pods
	order  []bind.Target           // targets, as they were claimed
	claims map[bind.Target][]claim // the most exact ones, of different branches
	won    map[bind.Target]*claim  // by target
}

func (r *resolver) claim(target bind.Target, c claim) {
	c.target = target
	was := r.claims[target]
	switch {
	case was == nil:
		r.order = append(r.order, target)
	case c.exact > was[0].exact:
		was = nil
	case c.exact < was[0].exact || slices.ContainsFunc(was, func(o claim) bool { return o.branch == c.branch }):
		return
	}
	r.claims[target] = append(was, c)
}

// settle gives each target to who claims it, and says of what several do only the
// first of the same bindings.
func (r *resolver) settle() {
	type pair struct{ a, b bind.Binding }
	said := map[pair]bool{}
	for _, target := range r.order {
		all := r.claims[target]
		first := all[0]
		if len(all) == 1 {
			r.bind(target, &all[0])
			continue
		}
		for _, c := range all[1:] {
			if k := (pair{first.binding, c.binding}); said[k] {
				continue
			} else {
				said[k] = true
			}
			err := fmt.Errorf("%s: binding %q names %s, which %q of %s names already", c.branch.Path, c.from, target, first.from, first.branch.Path)
			if c.exact != exactly {
				err = fmt.Errorf("%w, and just as exactly: bind %s by its name, or write more of the name in one of the two", err, target)
			}
			r.Refused = append(r.Refused, Refused{Path: c.branch.Path, Binding: c.binding, With: first.binding, Err: err})
		}
	}
}

func (r *resolver) bind(target bind.Target, c *claim) {
	r.won[target] = c
	if r.only && c.pod == nil {
		return
	}
	r.Bound = append(r.Bound, hierarchy.Bound{Target: target, Class: c.branch.Class, Path: c.branch.Entry, From: c.from, Stays: c.branch.Path.Base() == hierarchy.RestName})
}

// withoutInherited leaves out what has the same class as the nearest binding
// above it: a net_cls tag does not show whether it was inherited.
func withoutInherited(all []hierarchy.Bound) []hierarchy.Bound {
	class := map[string]hierarchy.ClassID{}
	for _, x := range all {
		class[x.Target.Name] = x.Class
	}
	return slices.DeleteFunc(all, func(x hierarchy.Bound) bool {
		for p := path.Dir(x.Target.Name); p != "/"; p = path.Dir(p) {
			if c, ok := class[p]; ok {
				return c == x.Class
			}
		}
		return false
	})
}

// targets are what a binding names, and reasons why there is nothing at present,
// or not all.
func (l *look) targets(x bind.Binding, units map[string][]string, in *containers) (targets []bind.Target, missing []string, err error) {
	one := func(target bind.Target, reason string, err error) ([]bind.Target, []string, error) {
		switch {
		case err != nil:
			return nil, nil, err
		case reason != "":
			return nil, []string{reason}, nil
		}
		return []bind.Target{target}, nil, nil
	}
	switch x.Kind {
	case bind.Cgroup:
		return l.cgroups(x.Name)
	case bind.Unit, bind.Slice:
		return l.unitTargets(x, units)
	case bind.User:
		return one(l.user(x.Name))
	case bind.Container:
		return one(in.target(x.Name))
	case bind.Link:
		l.Watch("", func(name string) bool { return name == x.Name })
		return one(l.resolveLink(x.Name))
	}
	return nil, nil, fmt.Errorf("kind %v of binding is not known", x.Kind)
}

// cgroups are those that a path stands for.
func (l *look) cgroups(name string) (targets []bind.Target, missing []string, err error) {
	t := l.Tree
	if bind.Pattern(name).Exact() {
		for i := range name {
			if name[i] == '/' {
				part, _, _ := strings.Cut(name[i+1:], "/")
				l.Watch(t.Dir(name[:i]), func(name string) bool { return name == part })
			}
		}
		id, _, err := t.ID(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, []string{"no such cgroup below " + t.Where}, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if t.V2() {
			l.found[id] = name
		}
		return []bind.Target{bind.ToCgroup(name)}, nil, nil
	}
	found, err := glob(t, name, l.Watch)
	if err != nil {
		return nil, nil, err
	}
	if len(found) == 0 {
		return nil, []string{"no such cgroups below " + t.Where}, nil
	}
	for _, p := range found {
		targets = append(targets, bind.ToCgroup(p))
	}
	return targets, nil, nil
}

// unitTargets are the cgroups of the units or slices that a binding stands for.
func (l *look) unitTargets(x bind.Binding, units map[string][]string) (targets []bind.Target, missing []string, err error) {
	names := []string{x.Name}
	if p := bind.Pattern(x.Name); !p.Exact() {
		names = running(p, x.Kind, units)
	}
	for _, name := range names {
		switch found := units[name]; {
		case len(found) == 1:
			targets = append(targets, bind.ToCgroup(found[0]))
		case len(found) > 1:
			missing = append(missing, fmt.Sprintf("%d cgroups bear the name; write one of them: cgroup:%s", len(found), strings.Join(found, ", cgroup:")))
		}
	}
	switch {
	case len(targets)+len(missing) > 0:
	case !l.Tree.V2():
		missing = []string{"no such cgroup in the net_cls hierarchy, which systemd leaves alone"}
	case len(names) == 0:
		missing = []string{fmt.Sprintf("no such %s is running (a user's own or a container's is named by cgroup:/PATH)", x.Kind)}
	default:
		missing = []string{fmt.Sprintf("the %s is not running (a user's own or a container's is named by cgroup:/PATH)", x.Kind)}
	}
	for _, name := range running(socketUnit(bind.Pattern(x.Name)), x.Kind, units) {
		if found := units[name]; len(found) == 1 {
			targets = append(targets, bind.ToCgroup(found[0]))
		}
	}
	return targets, missing, nil
}

// running are the names among units that a pattern stands for, in order.
func running(p bind.Pattern, kind bind.Kind, units map[string][]string) (names []string) {
	for name, found := range units {
		if len(found) > 0 && p.Match(name) && strings.HasSuffix(name, ".slice") == (kind == bind.Slice) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// user is the target of a user, or why there is none at present.
func (l *look) user(name string) (target bind.Target, reason string, err error) {
	if l.NoUsers != nil {
		return target, "", l.NoUsers
	}
	if uid, err := strconv.ParseUint(name, 10, 32); err == nil {
		return bind.ToUser(uint32(uid)), "", nil
	}
	l.Watch("/etc", func(name string) bool { return name == "passwd" })
	u, err := user.Lookup(name)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		return target, "no such user", nil
	}
	if err != nil {
		return target, "", err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	return bind.ToUser(uint32(uid)), "", err
}

// resolveLink is the target of a bound interface, or why there is none at present.
func (l *look) resolveLink(name string) (target bind.Target, reason string, err error) {
	switch {
	case l.NoLinks != nil:
		return bind.Target{}, "", l.NoLinks
	case name == l.Interface:
		return bind.Target{}, "", errors.New("it is the shaped interface itself: what comes in by it and leaves by it again is the rest's")
	}
	// it may be another of its names
	is, err := iface.Get(l.NetNSFD, 0, name)
	if errors.Is(err, iface.ErrNone) {
		return bind.Target{}, err.Error(), nil
	}
	return bind.ToLink(is.Name), "", err
}

// Subordinates are the numbers beside its own that a user may give its processes, in a
// user namespace by newuidmap, as "100000-165535": those of /etc/subuid. Target is that of
// the user's binding, which does not hold them; any other target has none.
func Subordinates(target bind.Target) ([]string, error) {
	if target.Kind != bind.TargetUser {
		return nil, nil
	}
	uid := strconv.FormatUint(target.ID, 10)
	b, err := os.ReadFile("/etc/subuid")
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	name := uid
	if u, err := user.LookupId(uid); err == nil { // a number may be nobody's
		name = u.Username
	}
	var all []string
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || f[0] != name && f[0] != uid {
			continue
		}
		first, errFirst := strconv.ParseUint(f[1], 10, 32)
		count, errCount := strconv.ParseUint(f[2], 10, 32)
		if errFirst == nil && errCount == nil && count > 0 {
			all = append(all, fmt.Sprintf("%d-%d", first, first+count-1))
		}
	}
	return all, nil
}

// glob lists the cgroups that a path stands for whose parts may be patterns. It
// reads no more directories than these take, and tells watch of each before.
func glob(t *cgroupfs.Tree, pattern string, watch Watch) ([]string, error) {
	found := []string{""}
	for part := range strings.SplitSeq(strings.TrimPrefix(pattern, "/"), "/") {
		p := bind.Pattern(part)
		var next []string
		for _, dir := range found {
			watch(t.Dir(dir), p.Match)
			if p.Exact() {
				next = append(next, dir+"/"+part)
				continue
			}
			names, err := t.Children(dir)
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				if at := dir + "/" + name; at != home.Root && p.Match(name) {
					next = append(next, at)
				}
			}
		}
		found = next
	}
	return slices.DeleteFunc(found, func(p string) bool {
		_, _, err := t.ID(p)
		return err != nil || strings.HasPrefix(p, home.Root+"/")
	}), nil
}

// units finds the cgroups of units and slices by their names, all that bindings name
// or have patterns for, where systemd puts them: at the end of a chain of slices.
// Below a unit there may be others' cgroups with the same names: what a user's
// manager and a container make of what was delegated to them claims nothing here.
func (l *look) units(branches []Branch) (map[string][]string, error) {
	units := map[string][]string{}
	var patterns []bind.Pattern
	for _, br := range branches {
		for _, x := range br.Bind {
			if x.Kind != bind.Unit && x.Kind != bind.Slice {
				continue
			}
			for _, p := range []bind.Pattern{bind.Pattern(x.Name), socketUnit(bind.Pattern(x.Name))} {
				switch {
				case p == "":
				case p.Exact():
					units[string(p)] = nil
				default:
					patterns = append(patterns, p)
				}
			}
		}
	}
	if len(units)+len(patterns) == 0 {
		return nil, nil
	}
	wanted := func(name string) bool {
		_, exact := units[name]
		return exact || slices.ContainsFunc(patterns, func(p bind.Pattern) bool { return p.Match(name) })
	}
	t := l.Tree
	matters := func(name string) bool {
		return wanted(name) || wanted(cgroupfs.Unescape(name)) || strings.HasSuffix(name, ".slice")
	}
	err := t.Walk("/", func(p string) error {
		if err := l.ctx.Err(); err != nil {
			return err
		}
		if p == "/" {
			l.Watch(t.Dir(""), matters)
			return nil
		}
		name := path.Base(p)
		if _, exact := units[name]; !exact {
			name = cgroupfs.Unescape(name)
		}
		stem, slice := strings.CutSuffix(name, ".slice")
		if slice && sliceAbove(stem) != cgroupfs.Unescape(strings.TrimPrefix(path.Base(path.Dir(p)), "/")) {
			return fs.SkipDir // called like a slice, and none of systemd's
		}
		if wanted(name) && p != home.Root {
			units[name] = append(units[name], p)
		}
		if !slice {
			return fs.SkipDir
		}
		l.Watch(t.Dir(p), matters)
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

// UnitOf is the unit of the system's manager whose cgroup that is, or which it lies below:
// the first that is no slice on the way down. Empty: there is none.
func UnitOf(p string) string {
	above := ""
	for part := range strings.SplitSeq(strings.TrimPrefix(p, "/"), "/") {
		name := cgroupfs.Unescape(part)
		stem, slice := strings.CutSuffix(name, ".slice")
		switch {
		case slice && sliceAbove(stem) == above:
			above = name
			continue
		case !slice && slices.Contains([]string{".service", ".socket", ".scope", ".mount", ".swap"}, path.Ext(name)):
			return name
		}
		return ""
	}
	return ""
}
