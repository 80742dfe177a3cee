package hierarchy

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
)

// IDs is the memory of one interface's class ids: which branch has which minor
// number, and which numbers were given up not long ago. The zero value is an
// interface that never had a tree.
type IDs struct {
	Minors  map[string]uint16 `json:"minors"`            // by key, see Assign
	Retired []Retired         `json:"retired,omitempty"` // oldest first
}

// Retired is a class id that its branch no longer uses.
type Retired struct {
	Key   string `json:"key"`
	Minor uint16 `json:"minor"`
}

// keepRetired is how many given-up ids are remembered.
const keepRetired = 8192

const (
	firstMinor = 0x0010
	lastMinor  = 0xfffe // 0xffff as a leaf's qdisc handle would be clsact's
	lowMinors  = 0x7ff0 // where the search begins: below the kernel's automatic qdisc handles
)

// Assign gives every class of the tree its id and returns the memory to keep.
// The receiver is not changed.
//
// The id follows from the branch's path alone (a hash, and the next free number
// where two paths meet), so that the same policy gives the same ids on every
// machine, and even with the memory lost most ids stay what they are. The memory
// comes first: a branch keeps its id whatever else is edited, and an id that was
// given up goes to another branch only when none is left that never belonged to
// anyone lately. A branch that comes back gets its old id back.
//
// A branch that turns from a leaf into an inner branch, or back, gets another
// class: the kernel would throw away the queue of the old one at the first child
// (htb_change_class, net/sched/sch_htb.c, v6.12) and send its packets elsewhere
// until the binding has moved.
func (ids IDs) Assign(t *Tree) (IDs, error) {
	next := IDs{Minors: make(map[string]uint16, len(ids.Minors)), Retired: slices.Clone(ids.Retired)}
	taken := map[uint16]string{0: "", RootMinor: "", RestMinor: "", Major: "", 0xffff: ""}
	var fresh []*Branch
	live := map[string]bool{}
	for b := range t.All() {
		switch key := b.key(); {
		case b == t.Root:
			b.ID = ID(RootMinor)
		case b.Path == t.Root.Path.Join(RestName):
			b.ID = ID(RestMinor)
		default:
			live[key] = true
			if m, ok := ids.Minors[key]; ok {
				if _, twice := taken[m]; twice {
					return ids, fmt.Errorf("class id %v is remembered for %s and for another branch", ID(m), b.Path)
				}
				taken[m] = key
				next.Minors[key] = m
				b.ID = ID(m)
				continue
			}
			fresh = append(fresh, b)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(ids.Minors)) {
		if !live[key] {
			next.Retired = append(next.Retired, Retired{key, ids.Minors[key]})
		}
	}
	retired := map[uint16]bool{}
	back := map[string]uint16{}
	for _, r := range next.Retired {
		retired[r.Minor] = true
		back[r.Key] = r.Minor
	}
	for _, b := range fresh {
		key := b.key()
		m, ok := back[key]
		if ok {
			_, ok = taken[m]
			ok = !ok
		}
		if !ok {
			m, ok = free(key, func(m uint16) bool { _, used := taken[m]; return used || retired[m] })
		}
		if !ok { // every number belonged to somebody: the one longest given up
			for _, r := range next.Retired {
				if _, used := taken[r.Minor]; !used {
					m, ok = r.Minor, true
					break
				}
			}
		}
		if !ok {
			return ids, fmt.Errorf("no class id is left for %s", b.Path)
		}
		taken[m] = key
		next.Minors[key] = m
		b.ID = ID(m)
	}
	next.Retired = slices.DeleteFunc(next.Retired, func(r Retired) bool { _, used := taken[r.Minor]; return used })
	if n := len(next.Retired) - keepRetired; n > 0 {
		next.Retired = next.Retired[n:]
	}
	for b := range t.All() {
		for _, c := range b.Children {
			c.Parent = b.ID
		}
	}
	return next, nil
}

// key tells a branch's class from all others of the interface, and a leaf from
// an inner branch of the same path.
func (b *Branch) key() string {
	if b.Leaf() {
		return string(b.Path)
	}
	return string(b.Path) + "/"
}

// free is the first number not in use from where the hash of the key points.
func free(key string, used func(uint16) bool) (uint16, bool) {
	h := fnv.New32a()
	h.Write([]byte(key)) // never fails
	start := firstMinor + h.Sum32()%lowMinors
	const n = lastMinor - firstMinor + 1
	for i := range uint32(n) {
		m := uint16(firstMinor + (start-firstMinor+i)%n)
		if !used(m) {
			return m, true
		}
	}
	return 0, false
}

// Names is the path of every class id in memory.
func (ids IDs) Names(iface string) map[ClassID]Path {
	names := make(map[ClassID]Path, len(ids.Minors)+2)
	names[ID(RootMinor)] = Path(iface)
	names[ID(RestMinor)] = Path(iface).Join(RestName)
	for key, m := range ids.Minors {
		p := Path(key)
		if p.Base() == "" { // an inner branch's key ends with a slash
			p = p.Parent()
		}
		names[ID(m)] = p
	}
	return names
}

// Find is the class of the branch with the given path, and whether the branch
// is an inner one.
func (ids IDs) Find(p Path) (id ClassID, inner, ok bool) {
	switch {
	case p.Parent() == "":
		return ID(RootMinor), true, true
	case p.Base() == RestName && p.Parent().Parent() == "":
		return ID(RestMinor), false, true
	}
	if m, ok := ids.Minors[string(p)]; ok {
		return ID(m), false, true
	}
	m, ok := ids.Minors[string(p)+"/"]
	return ID(m), true, ok
}
