package hierarchy

import (
	"cmp"
	"fmt"
	"hash/fnv"
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
	var taken minors
	for _, m := range []uint16{0, RootMinor, RestMinor, Major, 0xffff} {
		taken[m] = true
	}
	type newcomer struct {
		*Branch
		key string
	}
	var fresh []newcomer
	rest := t.Root.Path.Join(RestName)
	for b := range t.All() {
		switch {
		case b == t.Root:
			b.ID = ID(RootMinor)
			continue
		case b.Path == rest:
			b.ID = ID(RestMinor)
			continue
		}
		key := b.key()
		if _, twice := next.Minors[key]; twice {
			return ids, fmt.Errorf("%s is there twice", b.Path)
		}
		m, ok := ids.Minors[key]
		if !ok {
			fresh = append(fresh, newcomer{b, key})
			continue
		}
		if taken[m] {
			return ids, fmt.Errorf("class id %v is remembered for %s and for another branch", ID(m), b.Path)
		}
		taken[m] = true
		next.Minors[key] = m
		b.ID = ID(m)
	}
	old := len(next.Retired)
	for key, m := range ids.Minors {
		if _, live := next.Minors[key]; !live {
			next.Retired = append(next.Retired, Retired{key, m})
		}
	}
	slices.SortFunc(next.Retired[old:], func(a, b Retired) int { return cmp.Compare(a.Key, b.Key) })
	if len(fresh) == 0 {
		return next.finish(t, &taken), nil
	}
	barred := taken // and what was given up
	back := make(map[string]uint16, len(next.Retired))
	for _, r := range next.Retired {
		barred[r.Minor] = true
		back[r.Key] = r.Minor
	}
	search := newSearch(&barred)
	oldest := 0 // in next.Retired
	for _, b := range fresh {
		if _, twice := next.Minors[b.key]; twice {
			return ids, fmt.Errorf("%s is there twice", b.Path)
		}
		m, ok := back[b.key]
		if !ok || taken[m] {
			m, ok = search.next(b.key)
		}
		for ; !ok && oldest < len(next.Retired); oldest++ { // every number belonged to somebody
			if r := next.Retired[oldest]; !taken[r.Minor] {
				m, ok = r.Minor, true
			}
		}
		if !ok {
			return ids, fmt.Errorf("no class id is left for %s", b.Path)
		}
		taken[m] = true
		next.Minors[b.key] = m
		b.ID = ID(m)
	}
	return next.finish(t, &taken), nil
}

// finish forgets given-up numbers that are in use again or that are too many,
// and tells the branches their parents.
func (ids IDs) finish(t *Tree, taken *minors) IDs {
	ids.Retired = slices.DeleteFunc(ids.Retired, func(r Retired) bool { return taken[r.Minor] })
	if n := len(ids.Retired) - keepRetired; n > 0 {
		ids.Retired = ids.Retired[n:]
	}
	for b := range t.All() {
		for _, c := range b.Children {
			c.Parent = b.ID
		}
	}
	return ids
}

// minors says which minor numbers are in use.
type minors [1 << 16]bool

// key tells a branch's class from all others of the interface, and a leaf from
// an inner branch of the same path.
func (b *Branch) key() string {
	if b.Leaf() {
		return string(b.Path)
	}
	return string(b.Path) + "/"
}

// search finds free numbers. For each number it knows one to go on with, itself
// where it is free, and shortens the way as it walks, so that a nearly full range
// costs no more than an empty one.
type search struct {
	on   [1 << 16]uint16
	left int // free numbers
}

func newSearch(used *minors) *search {
	var s search
	for m := range uint16(len(used) - 1) {
		if used[m] || m < firstMinor || control(m) {
			s.on[m] = after(m)
		} else {
			s.on[m] = m
			s.left++
		}
	}
	return &s
}

// control says whether fq before Linux 6.7 would take all packets of a class with
// this number for control traffic, which it neither paces nor shares out among
// flows: it looks at the last four bits of a packet's priority, and to us that is
// the class id (fq_classify, net/sched/sch_fq.c, v6.1; TC_PRIO_CONTROL of
// linux/pkt_sched.h).
func control(m uint16) bool { return m&15 == 7 }

// after is the number behind m, the first one behind the last.
func after(m uint16) uint16 {
	if m < firstMinor || m >= lastMinor {
		return firstMinor
	}
	return m + 1
}

// next takes the first free number from where the hash of the key points.
func (s *search) next(key string) (uint16, bool) {
	h := fnv.New32a()
	h.Write([]byte(key)) // never fails
	m := firstMinor + uint16(h.Sum32()%lowMinors)
	if s.left == 0 {
		return 0, false
	}
	for s.on[m] != m {
		s.on[m] = s.on[s.on[m]]
		m = s.on[m]
	}
	s.on[m] = after(m)
	s.left--
	return m, true
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
// is an inner one. A path whose last part is empty names none.
func (ids IDs) Find(p Path) (id ClassID, inner, ok bool) {
	switch {
	case p.Base() == "":
		return 0, false, false
	case p.Parent() == "":
		return ID(RootMinor), true, true
	case p.Base() == RestName && p.Parent().Parent() == "":
		return ID(RestMinor), false, true
	}
	if m, ok := ids.Minors[string(p)]; ok {
		return ID(m), false, true
	}
	if m, ok := ids.Minors[string(p)+"/"]; ok {
		return ID(m), true, true
	}
	return 0, false, false
}
