package hierarchy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// IDs is the memory of one device's class ids: which branch has which minor
// number, and which numbers were given up not long ago. Branches are named as they
// are below the device, whatever its name, and have the same number at each of its
// ports. The zero value is a device that never had a tree.
type IDs struct {
	Minors  map[string]uint16 `json:"minors"`            // by key: "web/api", and "web/" for an inner branch
	Retired []Retired         `json:"retired,omitempty"` // oldest first
	// Named is about paths below the device that branches were renamed to, or from.
	Named map[string]Named `json:"named,omitempty"`
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

// Assign gives every class of a device's tree, and of its tree for receiving, its id
// and returns the memory to keep. The receiver is not changed.
//
// The id follows from the branch's path alone (a hash, and the next free number
// where two paths meet), so that the same policy gives the same ids on every
// machine, and even with the memory lost most ids stay what they are. The memory
// comes first: a branch keeps its id whatever else is edited, and an id that was
// given up goes to another branch only when none is left that never belonged to
// anyone lately. A branch that comes back gets its old id back, and one that the
// policy renames keeps it, as long as its parent is the same.
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
	names := ids.follow(t)
	if names != nil && len(names.named) > 0 {
		next.Named = names.named
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
		key := names.key(b)
		m, ok := ids.Minors[key]
		if !ok {
			fresh = append(fresh, newcomer{b, key})
			continue
		}
		if taken[m] {
			if _, same := next.Minors[key]; same {
				return ids, fmt.Errorf("%s is there twice", b.Path)
			}
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
	if err := next.number(fresh, &taken); err != nil {
		return ids, err
	}
	next.Retired = slices.DeleteFunc(next.Retired, func(r Retired) bool { return taken[r.Minor] })
	if n := len(next.Retired) - keepRetired; n > 0 {
		next.Retired = next.Retired[n:]
	}
	for b, in := range t.Both() {
		for _, c := range b.Children {
			c.Parent = b.ID
		}
		if in != nil {
			in.ID, in.Parent = b.ID, b.Parent
		}
	}
	return next, nil
}

// newcomer is a branch that is not remembered.
type newcomer struct {
	*Branch
	key string
}

// number gives newcomers free numbers, or those that they had given up.
func (ids *IDs) number(fresh []newcomer, taken *minors) error {
	if len(fresh) == 0 {
		return nil
	}
	barred := *taken // and what was given up
	back := make(map[string]uint16, len(ids.Retired))
	for _, r := range ids.Retired {
		barred[r.Minor] = true
		back[r.Key] = r.Minor
	}
	search := newSearch(&barred)
	oldest := 0 // in ids.Retired
	for _, b := range fresh {
		if _, twice := ids.Minors[b.key]; twice {
			return fmt.Errorf("%s is there twice", b.Path)
		}
		m, ok := back[b.key]
		if !ok || taken[m] {
			m, ok = search.next(b.Branch)
		}
		for ; !ok && oldest < len(ids.Retired); oldest++ { // every number belonged to somebody
			if r := ids.Retired[oldest]; !taken[r.Minor] {
				m, ok = r.Minor, true
			}
		}
		if !ok {
			return fmt.Errorf("no class id is left for %s", b.Path)
		}
		taken[m] = true
		ids.Minors[b.key] = m
		b.ID = ID(m)
	}
	return nil
}

// minors says which minor numbers are in use, or must not be.
type minors [1 << 16]bool

// key tells a branch's class from all others of the device, and a leaf from
// an inner branch of the same path.
func (n *names) key(b *Branch) string {
	_, key, _ := strings.Cut(string(b.Path), "/")
	if n != nil {
		key = n.keys[b]
	}
	if b.Leaf() {
		return key
	}
	return key + "/"
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

// next takes the first free number from where the hash of the branch's path points.
func (s *search) next(b *Branch) (uint16, bool) {
	const prime = 16777619
	h := uint32(2166136261) // FNV-1a, in place: there may be many
	for i := range len(b.Path) {
		h = (h ^ uint32(b.Path[i])) * prime
	}
	if !b.Leaf() {
		h = (h ^ '/') * prime
	}
	m := firstMinor + uint16(h%lowMinors)
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

// Names is the path of every class id in memory, below a device of that name.
func (ids IDs) Names(device string) map[ClassID]Path {
	names := make(map[ClassID]Path, len(ids.Minors)+2)
	names[ID(RootMinor)] = Path(device)
	names[ID(RestMinor)] = Path(device).Join(RestName)
	all := strings.Builder{} // one string for all of them: there may be many
	size := 0
	for key := range ids.Minors {
		size += len(device) + 1 + len(key)
	}
	all.Grow(size)
	for key, m := range ids.Minors {
		from := all.Len()
		all.WriteString(device)
		all.WriteByte('/')
		below := originOf(key)
		if is := ids.Named[below].Now; is != "" {
			below = is
		}
		all.WriteString(below)
		names[ID(m)] = Path(all.String()[from:])
	}
	return names
}

// Find is the class of the branch with the given path, whatever the device in it,
// and whether the branch is an inner one. A path whose last part is empty names none.
func (ids IDs) Find(p Path) (id ClassID, inner, ok bool) {
	_, key, below := strings.Cut(string(p), "/")
	switch {
	case p.Base() == "":
		return 0, false, false
	case !below:
		return ID(RootMinor), true, true
	case key == RestName:
		return ID(RestMinor), false, true
	}
	key, ok = ids.key(key)
	if !ok {
		return 0, false, false
	}
	if m, ok := ids.Minors[key]; ok {
		return ID(m), false, true
	}
	if m, ok := ids.Minors[key+"/"]; ok {
		return ID(m), true, true
	}
	return 0, false, false
}
