//go:build linux

package link

import (
	"slices"

	"github.com/vifshape/vifshape/hierarchy"
)

// Carriers are those of links that l sends through, nearest first: what a VLAN,
// a macvlan or a bound tunnel lies on, the members of a bond, bridge or VRF, and
// what carries these in turn. The other end of a veth is not among them: it
// receives.
func Carriers(links []Link, l Link) []Link {
	s := newStack(links)
	var out []Link
	seen := map[int]bool{l.Index: true}
	next := s.below(l)
	for len(next) > 0 {
		c := links[next[0]]
		next = next[1:]
		if !seen[c.Index] { // a tunnel may be a member of the bridge it is bound to
			seen[c.Index] = true
			out = append(out, c)
			next = append(next, s.below(c)...)
		}
	}
	return out
}

// Peer says whether Lower is the other end of a pair, and nothing that the
// interface lies on.
func (l *Link) Peer() bool {
	switch l.Kind {
	case "veth", "netkit", "vxcan":
		return l.Lower != 0
	}
	return false
}

// stack knows which of the links of a namespace carries which.
type stack struct {
	links   []Link
	at      map[int]int   // place in links by index
	members map[int][]int // places in links by index of the master
}

func newStack(links []Link) *stack {
	s := &stack{links, make(map[int]int, len(links)), map[int][]int{}}
	for i, l := range links {
		s.at[l.Index] = i
		if l.Master != 0 {
			s.members[l.Master] = append(s.members[l.Master], i)
		}
	}
	return s
}

// below are the places in links of those that carry l without another in between.
func (s *stack) below(l Link) []int {
	out := s.members[l.Index]
	if l.Kind == "ipoib" {
		return out // names its parent and sends past it (ipoib_start_xmit, drivers/infiniband/ulp/ipoib/ipoib_main.c, v6.1)
	}
	if i, ok := s.at[l.Lower]; ok && l.Lower != l.Index && l.LowerNetNS == -1 && !l.Peer() {
		out = append(slices.Clip(out), i)
	}
	return out
}

// connect fills in what follows from all links of a namespace together. ask tells
// what the driver says of the speed of a line, name what an interface in another
// namespace is called.
func connect(links []Link, ask func(name string) hierarchy.Bandwidth, name func(netNS, index int) string) {
	s := newStack(links)
	done := make([]bool, len(links))
	var speed func(i int) hierarchy.Bandwidth
	fastest := func(of []int) (most hierarchy.Bandwidth) {
		for _, i := range of {
			most = max(most, speed(i))
		}
		return most
	}
	speed = func(i int) hierarchy.Bandwidth {
		l := &links[i]
		if done[i] {
			return l.Speed
		}
		done[i] = true
		switch {
		case l.Nature == Physical:
			l.Speed = ask(l.Name)
		case l.Nature == Bond:
			// The driver knows which members send.
			if fastest(s.members[l.Index]) != 0 {
				l.Speed = ask(l.Name)
			}
		case l.Nature == Bridge: // of those that can send now
			l.Speed = fastest(slices.DeleteFunc(slices.Clone(s.members[l.Index]), func(i int) bool { return !links[i].Carrier }))
		case l.LowerNetNS != -1 && passesOn(l.Kind):
			l.Speed = ask(l.Name) // what carries it cannot be seen from here
		default:
			l.Speed = fastest(s.below(*l))
		}
		return l.Speed
	}
	for i := range links {
		l := &links[i]
		speed(i)
		for _, m := range s.members[l.Index] {
			l.Members = append(l.Members, links[m].Name)
		}
		if j, ok := s.at[l.Lower]; ok && l.LowerNetNS == -1 {
			l.LowerName = links[j].Name
		} else if l.Lower != 0 && l.LowerNetNS != -1 {
			l.LowerName = name(l.LowerNetNS, l.Lower)
		}
	}
}

// passesOn says whether the driver of a kind answers with the speed of what the
// interface lies on.
func passesOn(kind string) bool {
	switch kind {
	case "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap":
		return true
	}
	return false
}
