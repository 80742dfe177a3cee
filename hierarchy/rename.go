package hierarchy

import (
	"fmt"
	"strings"
)

// Named is what there is to know of a path below a device, where a branch was renamed.
type Named struct {
	// Origin is the path under which the branch was made that has this one now. Class ids go
	// by it, and the cgroup of the branch's processes, which nothing can rename. Empty: there
	// is no such branch.
	Origin string `json:"origin,omitempty"`
	// From is what the policy says that it was renamed from, and that has been done; a whole
	// path stands without its device.
	From string `json:"from,omitempty"`
	// Now is the path of the branch that has this one for its origin, where that is another.
	Now string `json:"now,omitempty"`
}

// Home is the path of a branch by its origin: by which the cgroup of its processes is
// called. It is the branch's own unless it was renamed.
func (ids IDs) Home(p Path) Path {
	device, below, _ := strings.Cut(string(p), "/")
	if origin, ok := ids.origin(below); ok && below != "" {
		return Path(device).Join(origin)
	}
	return p
}

// Called is the branch with the given home, under the name that it has now. Ok is false
// where another branch has the name of that home. That there is such a branch, [IDs.Find]
// says.
func (ids IDs) Called(home Path) (p Path, ok bool) {
	device, origin, _ := strings.Cut(string(home), "/")
	n, ok := ids.Named[origin]
	if n.Now != "" {
		return Path(device).Join(n.Now), true
	}
	return home, !ok || n.Origin == origin
}

// origin is that of the branch with a path below the device. Ok is false where that is none.
func (ids IDs) origin(below string) (origin string, ok bool) {
	if n, ok := ids.Named[below]; ok {
		return n.Origin, n.Origin != ""
	}
	return below, true
}

// key is that of the branch with a path below the device, as if it were a leaf. Ok is false
// where no branch has the path.
func (ids IDs) key(below string) (key string, ok bool) {
	if len(ids.Named) == 0 || below == "" {
		return below, true
	}
	up, _ := cutLast(below)
	origin, ok := ids.origin(below)
	if !ok {
		return "", false
	}
	above, ok := ids.origin(up)
	if !ok {
		return "", false
	}
	key, ok = ids.key(up)
	return keyBelow(key, above, origin), ok
}

// keyBelow is the key of a branch with the given origin below one whose key and origin are
// given. It is the origin itself, unless the branch, or one above it, was moved from another
// parent: the kernel cannot move a class, so that it has another one there. Then the key has
// the origin between two slashes and a colon: "office//web:" and below it "office//web:/api".
func keyBelow(key, up, origin string) string {
	if above, name := cutLast(origin); above == up {
		return join(key, name)
	}
	return key + "//" + origin + ":"
}

// originOf is the origin of the branch that has a key.
func originOf(key string) string {
	key = strings.TrimSuffix(key, "/")
	if i := strings.LastIndex(key, "//"); i >= 0 {
		return strings.Replace(key[i+2:], ":", "", 1)
	}
	return key
}

func join(up, name string) string {
	if up == "" {
		return name
	}
	return up + "/" + name
}

func cutLast(below string) (up, name string) {
	if i := strings.LastIndexByte(below, '/'); i >= 0 {
		return below[:i], below[i+1:]
	}
	return "", below
}

// names is what a tree's branches are called, and were.
type names struct {
	ids    IDs
	was    map[*Branch]string // the paths below the device that they had in ids
	claims map[string]*Branch // by such a path: who is renamed from it now
	named  map[string]Named
	keys   map[*Branch]string // without the slash of inner branches
}

// follow finds the branches of a tree in the memory, by the names that they had. It returns
// nil where every branch has its name from the start.
//
// What the policy says that a branch was renamed from counts once, where it is new: the
// branch has it from then on, and the key may stay in the policy. A branch that comes takes
// the origin that follows from its parent's and its name, unless another one has it: so a
// branch that gets its first name back is the same again.
func (ids IDs) follow(t *Tree) *names {
	renames := len(ids.Named) > 0
	for b := range t.All() {
		renames = renames || b.RenamedFrom != ""
	}
	if !renames {
		return nil
	}
	n := &names{ids: ids, claims: map[string]*Branch{}}
	for range 2 { // who is renamed comes before who stays
		n.was = map[*Branch]string{}
		n.find(t.Root, "", false)
	}
	taken := map[string]bool{RestName: true}
	for _, was := range n.was {
		origin, _ := ids.origin(was)
		taken[origin] = true
	}
	n.named, n.keys = map[string]Named{}, map[*Branch]string{}
	n.settle(t.Root, "", "", taken)
	for path, x := range n.named {
		if x.Origin != "" && x.Origin != path {
			o := n.named[x.Origin]
			o.Now = path
			n.named[x.Origin] = o
		}
	}
	return n
}

// find looks for the branches below b, which was called so, unless another one was.
func (n *names) find(b *Branch, was string, other bool) {
	for _, c := range b.Children {
		at := join(was, c.Path.Base())
		there := !other && n.ids.knows(at)
		if from := c.renamedFrom(); from != "" && !(there && n.ids.Named[at].From == from) {
			whole, isWhole := strings.CutPrefix(from, "/")
			if !isWhole {
				whole = join(was, from)
			}
			if by := n.claims[whole]; (isWhole || !other) && (by == nil || by == c) && n.ids.knows(whole) {
				at, there = whole, true
				n.claims[whole] = c
			}
		}
		by := n.claims[at]
		taken := by != c && (other || by != nil)
		if there && !taken {
			n.was[c] = at
		}
		n.find(c, at, taken)
	}
}

// knows says whether there is a branch with a path below the device.
func (ids IDs) knows(below string) bool {
	if n, ok := ids.Named[below]; ok || below == RestName {
		return !ok || n.Origin != ""
	}
	key, ok := ids.key(below)
	_, leaf := ids.Minors[key]
	_, inner := ids.Minors[key+"/"]
	return ok && (leaf || inner)
}

// settle gives the branches below b their origins.
func (n *names) settle(b *Branch, key, origin string, taken map[string]bool) {
	for _, c := range b.Children {
		_, path, _ := strings.Cut(string(c.Path), "/")
		was, known := n.was[c]
		is, _ := n.ids.origin(was)
		if !known {
			if is = join(origin, c.Path.Base()); strings.Count(is, "/") >= MaxDepth {
				is = path // no origin grows for ever, however often what is below another moves away
			}
			for i, first := 2, is; taken[is]; i++ {
				is = fmt.Sprintf("%s~%d", first, i) // no branch is called so
			}
			taken[is] = true
		}
		if from := c.renamedFrom(); is != path || from != "" {
			n.named[path] = Named{Origin: is, From: from}
		}
		n.keys[c] = keyBelow(key, origin, is)
		n.settle(c, n.keys[c], is, taken)
	}
}

// renamedFrom is what the policy says that a branch was renamed from: a name, or a path below
// the device with a slash in front.
func (b *Branch) renamedFrom() string {
	_, below, ok := strings.Cut(b.RenamedFrom, "/")
	if !ok {
		return b.RenamedFrom
	}
	return "/" + below
}

// former is the path that a policy says the branch had, below a parent that had the given
// one.
func (b *Branch) former(up Path) Path {
	switch {
	case b.RenamedFrom == "":
		return up.Join(b.Path.Base())
	case strings.Contains(b.RenamedFrom, "/"):
		return Path(b.RenamedFrom)
	}
	return up.Join(b.RenamedFrom)
}

// renames checks what branches were renamed from: one at most from each.
func (r *resolver) renames(t *Tree) {
	renamed := false
	for b := range t.All() {
		renamed = renamed || b.RenamedFrom != ""
	}
	if !renamed {
		return
	}
	by := map[Path]*Branch{t.Root.Path: t.Root}
	var walk func(b *Branch, up Path)
	walk = func(b *Branch, up Path) {
		for _, c := range b.Children {
			was := c.former(up)
			if c.RenamedFrom != "" && was == c.Path && up == b.Path {
				r.add(c.Path, "renamed_from", fmt.Sprintf("renamed_from %q is what the branch is called now", c.RenamedFrom), "remove renamed_from, or give the branch its new name")
			}
			if other := by[was]; other == nil {
				by[was] = c
			} else if c.RenamedFrom != "" {
				r.both(c, other, was)
			} else {
				r.both(other, c, was)
			}
			walk(c, was)
		}
	}
	walk(t.Root, t.Root.Path)
}

// both reports that a branch is renamed from what another one was, or is.
func (r *resolver) both(b, other *Branch, was Path) {
	switch {
	case b.RenamedFrom == "": // two of one name are reported
	case other.RenamedFrom != "":
		r.add(b.Path, "renamed_from", fmt.Sprintf("renamed_from %q: %s is renamed from that, too", b.RenamedFrom, other.Path), "one branch takes it over: remove one of the two")
	case other.Path == was:
		r.add(b.Path, "renamed_from", fmt.Sprintf("renamed_from %q: %s is in the policy itself", b.RenamedFrom, was), fmt.Sprintf("where it has been carried out, remove renamed_from; else %s has to go, or to say what it is renamed from", was))
	default:
		r.add(b.Path, "renamed_from", fmt.Sprintf("renamed_from %q: %s is what was %s", b.RenamedFrom, other.Path, was), "remove one of the two, or say what the other is renamed from")
	}
}

// renamedFrom checks what is written for one branch.
func (r *resolver) renamedFrom(b *Branch) {
	from := b.RenamedFrom
	if from == "" {
		return
	}
	wrong := func(text, hint string) { r.add(b.Path, "renamed_from", text, hint) }
	device, below, whole := strings.Cut(from, "/")
	parts := []string{from}
	if whole {
		parts = strings.Split(below, "/")
	}
	for _, name := range parts {
		if err := CheckName(name); err != nil {
			wrong(fmt.Sprintf("renamed_from %q: %v", from, err), "write the name that the branch had, or its whole path, as in \"eth0/web\"")
			return
		}
	}
	switch name := parts[len(parts)-1]; {
	case b.Path.Base() == RestName || name == RestName:
		wrong(fmt.Sprintf("renamed_from %q: rest keeps its name: it carries what no binding claims", from), "remove renamed_from")
	case whole && device != b.Path.Interface():
		wrong(fmt.Sprintf("renamed_from %q: that is below another interface", from), fmt.Sprintf("write the branch's former name, or its whole path below %s", b.Path.Interface()))
	}
}
