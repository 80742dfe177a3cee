package bpf

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// The bits of bpf/match.h.
const (
	byProto uint8 = 1 << iota
	byFar
	byNear
	byDSCP
	byMark
	byVLAN
	byMAC
	byMACFar

	v4Received = 0x80
	v4None     = 0x40
	v4Host     = 0x80 // in to
	v6Host     = 2    // in received
	ranks      = 127  // of [match.Rank], what does not depend on addresses

	maxPairs, maxKinds = len(matchVifPairs{}.Pairs), len(matchVifKinds{}.Kinds)

	// maxRules bounds what all matches of an interface come to: a range is one, and so is
	// each value of each other key, with each of the others.
	maxRules = 1 << 20
)

// tables are the values of all entries of the maps of bpf/match.h that are in force, or
// are to be. What is 0 is not there.
type tables struct {
	scopes  map[matchVifScope]uint32
	lists   map[uint32]matchVifPairs // by number, as kinds are
	lengths [2][1 << 16]uint32       // senders', receivers'
	v4      map[matchVifV4]uint64
	v6      map[matchVifV6]uint64
	kinds   map[uint32]matchVifKinds
	rules   map[matchVifRule]uint32
	ports   [1 << 16]uint16
	macs    bool // some rule asks for MAC addresses
	hosts   bool // some rule asks for the address of our side before translation
}

// compiler makes tables. Numbers of groups and lists go on being those of former tables, so
// that entries for which nothing has changed are the same.
type compiler struct {
	tables
	groups map[addresses]*group
	pairs  map[matchVifScope]map[lengths]bool
	starts []uint16 // of ranges of ports that no rule tells apart
	many   int      // rules
}

// lengths are those of a pair of prefixes. Host says that the one on our side is of addresses
// as they are before translation.
type lengths struct {
	from, to uint8
	host     bool
}

// addresses is a key of v4 or v6, without what is needed for one direction alone.
type addresses struct {
	at  matchVifScope
	len lengths
	// as the program has them
	sender, receiver [2]uint64
}

// group is the rules that have the same addresses.
type group struct {
	rules map[matchVifRule]uint32 // the group in it is not filled in
	kinds map[kind]uint8          // with the highest rank of each
}

type kind struct {
	fields uint8
	mask   uint32
}

// compile makes the tables for branches that have matches. Former ones may be of nothing.
func compile(all []hierarchy.Matched, former *tables) (*tables, error) {
	c := &compiler{groups: map[addresses]*group{}, pairs: map[matchVifScope]map[lengths]bool{}}
	c.scopes = map[matchVifScope]uint32{}
	c.lists, c.kinds = map[uint32]matchVifPairs{}, map[uint32]matchVifKinds{}
	c.v4, c.v6, c.rules = map[matchVifV4]uint64{}, map[matchVifV6]uint64{}, map[matchVifRule]uint32{}
	c.tellPorts(all)
	for i := range all {
		x := &all[i]
		c.v4[headOf(x)] = uint64(x.Digest)
		for j := range x.Match {
			for _, received := range []bool{false, true} {
				if received && !x.Received {
					continue
				}
				for one := range x.Match[j].Cases(received) {
					if err := c.add(x, &one, received); err != nil {
						return nil, fmt.Errorf("match %d of %s: %w", j+1, x.Path, err)
					}
				}
			}
		}
	}
	if err := c.finish(former); err != nil {
		return nil, err
	}
	return &c.tables, nil
}

// tellPorts fills in ports: the ranges that come of all ends of ranges that rules have.
func (c *compiler) tellPorts(all []hierarchy.Matched) {
	begins, depth := make([]bool, 1<<16+1), make([]int, 1<<16+1)
	for _, x := range all {
		for i := range x.Match {
			m := &x.Match[i]
			for _, list := range [][]match.Ports{m.Port, m.SPort, m.DPort} {
				for _, p := range list {
					begins[p.First], begins[int(p.Last)+1] = true, true
					depth[p.First]++
					depth[int(p.Last)+1]--
				}
			}
		}
	}
	start, over := 0, 0
	for p := range 1 << 16 {
		over += depth[p]
		if begins[p] {
			start = p
		}
		if over == 0 {
			continue
		}
		if start == p {
			c.starts = append(c.starts, uint16(p))
		}
		c.ports[p] = uint16(start)
	}
}

// within are the numbers of ranges in ports; one 0 where there is no list.
func (c *compiler) within(list []match.Ports) []uint16 {
	if list == nil {
		return []uint16{0}
	}
	var all []uint16
	for _, p := range list {
		for i, _ := slices.BinarySearch(c.starts, p.First); i < len(c.starts) && c.starts[i] <= p.Last; i++ {
			all = append(all, c.starts[i])
		}
	}
	return all
}

func bit(is bool, field uint8) uint8 {
	if is {
		return field
	}
	return 0
}

// values are those of a key, one zero where it has none.
func values[T any](list []T) []T {
	if list == nil {
		return make([]T, 1)
	}
	return list
}

// add enters a case of a branch's match wherever packets are held against it.
func (c *compiler) add(x *hierarchy.Matched, one *match.Case, received bool) error {
	far, near := c.within(one.Far), c.within(one.Near)
	many := len(x.From)
	for _, n := range []int{len(far), len(near), len(one.MAC), len(one.Proto), len(one.DSCP), len(one.Mark), len(one.VLAN)} {
		many *= max(n, 1) // each at most 65,536
		if c.many+many > maxRules {
			return fmt.Errorf("with it the matches of the interface come to more than %d rules, for each value of a key is held against each of the others: split ranges less, or leave keys out", maxRules)
		}
	}
	c.many += many
	fields := bit(one.Proto != nil, byProto) | bit(one.Far != nil, byFar) | bit(one.Near != nil, byNear) | bit(one.DSCP != nil, byDSCP) |
		bit(one.Mark != nil, byMark) | bit(one.VLAN != nil, byVLAN) | bit(one.MAC != nil && !one.MACFar, byMAC) | bit(one.MAC != nil && one.MACFar, byMACFar)
	c.macs, c.hosts = c.macs || one.MAC != nil, c.hosts || one.Host
	value := uint32(x.Class.Minor())<<16 | uint32(one.Rank)&ranks
	for _, from := range x.From {
		g := c.group(from, one, received)
		for r := range product(one, far, near) {
			r.Fields = fields
			k := kind{fields, r.Mask}
			if was := g.rules[r]; was == 0 || was&ranks < value&ranks {
				g.rules[r] = value
			}
			g.kinds[k] = max(g.kinds[k], uint8(value&ranks))
		}
	}
	return nil
}

// product has every value of each key of a case with those of all others.
func product(one *match.Case, far, near []uint16) iter.Seq[matchVifRule] {
	return func(yield func(matchVifRule) bool) {
		for _, far := range far {
			for _, near := range near {
				for _, mac := range values(one.MAC) {
					for _, proto := range values(one.Proto) {
						for _, dscp := range values(one.DSCP) {
							for _, mark := range values(one.Mark) {
								for _, vlan := range values(one.VLAN) {
									r := matchVifRule{Far: far, Near: near, Proto: uint8(proto), Dscp: uint8(dscp), Mark: mark.Value, Mask: mark.Mask, Vlan: uint16(vlan), Mac: words(mac)}
									if !yield(r) {
										return
									}
								}
							}
						}
					}
				}
			}
		}
	}
}

// group is that for the addresses of a case in a scope.
func (c *compiler) group(from hierarchy.ClassID, one *match.Case, received bool) *group {
	a := addresses{at: matchVifScope{Minor: from.Minor(), Family: uint8(one.Family), Received: bit(received, 1)}}
	if one.Family != 0 {
		a.len = lengths{uint8(one.Sender.Bits()), uint8(one.Receiver.Bits()), one.Host}
		a.sender, a.receiver = ordered(one.Sender.Addr()), ordered(one.Receiver.Addr())
		c.tell(0, one.Sender)
		c.tell(1, one.Receiver)
	}
	g := c.groups[a]
	if g == nil {
		g = &group{map[matchVifRule]uint32{}, map[kind]uint8{}}
		c.groups[a] = g
		if c.pairs[a.at] == nil {
			c.pairs[a.at] = map[lengths]bool{}
		}
		c.pairs[a.at][a.len] = true
	}
	return g
}

// lengthBit is the bit of a length in the table of lengths, 0 where it has none.
func lengthBit(family int, length uint8) uint32 {
	switch {
	case length == 0 || family == 6 && length < 32:
		return 0
	case family == 6:
		return 1 << ((length - 1) / 4)
	}
	return 1 << (length - 1)
}

// tell puts a prefix into the table of lengths.
func (c *compiler) tell(side int, p netip.Prefix) {
	family := 4
	if p.Addr().Is6() {
		family = 6
	}
	b := lengthBit(family, uint8(p.Bits()))
	if b == 0 {
		return
	}
	a := ordered(p.Addr())[0]
	at, many := uint32(a>>16), uint32(1)
	if family == 6 {
		at = uint32(a>>48)*40503 + uint32(a>>32)
	} else if p.Bits() < 16 {
		many = 1 << (16 - p.Bits())
	}
	for i := range many {
		c.lengths[side][(at+i)&0xffff] |= b
	}
}

// finish gives groups and lists their numbers.
func (c *compiler) finish(former *tables) error {
	if former == nil {
		former = &tables{}
	}
	lists := newNumbers(former.lists)
	for at, pairs := range c.pairs {
		list, err := listOf(int(at.Family), pairs)
		if err != nil {
			return err
		}
		c.scopes[at] = lists.of(list)
	}
	c.lists = lists.taken
	kinds := newNumbers(former.kinds)
	ids := newGroups(former)
	for _, a := range slices.SortedFunc(maps.Keys(c.groups), compareAddresses) { // so that what is new has the same numbers each time
		g := c.groups[a]
		value := uint64(g.rules[matchVifRule{}])
		if len(g.rules) > 1 || value == 0 {
			list, err := kindsOf(g.kinds)
			if err != nil {
				return err
			}
			n := ids.of(a)
			value = uint64(n)<<32 | uint64(kinds.of(list))
			for r, to := range g.rules {
				r.Group = n
				c.rules[r] = to
			}
		}
		if k, ok := a.v4(); ok {
			c.v4[k] = value
		} else {
			c.v6[a.v6()] = value
		}
	}
	c.kinds = kinds.taken
	return nil
}

func listOf(family int, pairs map[lengths]bool) (list matchVifPairs, err error) {
	if len(pairs) > maxPairs {
		return list, fmt.Errorf("matches beside each other have prefixes of %d lengths, senders' with receivers', and are looked for by %d at most: join some, or fill them up to fewer lengths", len(pairs), maxPairs)
	}
	sorted := slices.SortedFunc(maps.Keys(pairs), func(a, b lengths) int {
		return cmp.Or(cmp.Compare(int(b.from)+int(b.to), int(a.from)+int(a.to)), cmp.Compare(b.from, a.from), cmp.Compare(bit(b.host, 1), bit(a.host, 1)))
	})
	list.Many = uint32(len(sorted))
	for i, l := range sorted {
		p := &list.Pairs[i]
		p.From, p.To, p.Host = l.from, l.to, uint32(bit(l.host, 1))
		if family == 6 {
			p.FromLow, p.ToLow = max(l.from, 64)-64, max(l.to, 64)-64
		}
		p.Senders, p.Receivers = lengthBit(family, l.from), lengthBit(family, l.to)
		if uint32(i) == list.First && p.Senders|p.Receivers != 0 {
			list.Senders, list.Receivers, list.First = list.Senders|p.Senders, list.Receivers|p.Receivers, list.First+1
		}
	}
	return list, nil
}

func kindsOf(kinds map[kind]uint8) (list matchVifKinds, err error) {
	if len(kinds) > maxKinds {
		return list, fmt.Errorf("matches beside each other with the same addresses have %d sets of keys and masks of marks, and are looked for by %d at most: let more of them ask for the same keys", len(kinds), maxKinds)
	}
	sorted := slices.SortedFunc(maps.Keys(kinds), func(a, b kind) int {
		return cmp.Or(cmp.Compare(kinds[b], kinds[a]), cmp.Compare(a.fields, b.fields), cmp.Compare(a.mask, b.mask))
	})
	list.Many = uint32(len(sorted))
	for i, k := range sorted {
		list.Kinds[i].Fields, list.Kinds[i].Mask, list.Kinds[i].Rank = k.fields, k.mask, kinds[k]
	}
	return list, nil
}

// numbers gives lists numbers: the former ones', else free ones.
type numbers[T comparable] struct {
	known map[T]uint32
	used  map[uint32]T
	taken map[uint32]T
	next  uint32
}

func newNumbers[T comparable](former map[uint32]T) *numbers[T] {
	n := &numbers[T]{map[T]uint32{}, former, map[uint32]T{}, 1}
	for id, list := range former {
		n.known[list] = id
	}
	return n
}

func (n *numbers[T]) of(list T) uint32 {
	id := n.known[list]
	if id == 0 {
		for _, used := n.used[n.next]; used; _, used = n.used[n.next] {
			n.next++
		}
		id = n.next
		n.next++
		n.known[list] = id
	}
	n.taken[id] = list
	return id
}

// groups gives groups numbers.
type groups struct {
	former *tables
	used   map[uint32]bool
	next   uint32
}

func newGroups(former *tables) *groups {
	g := &groups{former, map[uint32]bool{}, 1}
	for k, v := range former.v4 {
		if !k.head() {
			g.used[uint32(v>>32)] = true
		}
	}
	for _, v := range former.v6 {
		g.used[uint32(v>>32)] = true
	}
	return g
}

func (g *groups) of(a addresses) (id uint32) {
	if k, ok := a.v4(); ok {
		id = uint32(g.former.v4[k] >> 32)
	} else {
		id = uint32(g.former.v6[a.v6()] >> 32)
	}
	if id != 0 {
		return id
	}
	for g.used[g.next] {
		g.next++
	}
	g.next++
	return g.next - 1
}

// noLength is in place of both lengths where an entry of v4 is no rule's: it has the digest
// of a branch, by its number, with its class in place of an address.
const noLength = 0xff

func headOf(x *hierarchy.Matched) matchVifV4 {
	return matchVifV4{Minor: x.ID.Minor(), From: noLength, To: noLength, Sender: uint32(x.Class)}
}

func (k matchVifV4) head() bool { return k.From == noLength && k.To == noLength }

// matched are the branches in tables, as far as those show them.
func (t *tables) matched() (all []hierarchy.Matched) {
	for k, v := range t.v4 {
		if k.head() {
			all = append(all, hierarchy.Matched{ID: hierarchy.ID(k.Minor), Class: hierarchy.ClassID(k.Sender), Digest: hierarchy.Digest(v)})
		}
	}
	slices.SortFunc(all, func(a, b hierarchy.Matched) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// v4 is the key of what is not IPv6.
func (a addresses) v4() (k matchVifV4, ok bool) {
	return matchVifV4{Minor: a.at.Minor, From: a.len.from | bit(a.at.Received != 0, v4Received) | bit(a.at.Family == 0, v4None), To: a.len.to | bit(a.len.host, v4Host),
		Sender: uint32(a.sender[0]), Receiver: uint32(a.receiver[0])}, a.at.Family != 6
}

func (a addresses) v6() matchVifV6 {
	return matchVifV6{Minor: a.at.Minor, From: a.len.from, To: a.len.to, Received: uint32(a.at.Received | bit(a.len.host, v6Host)), Sender: a.sender, Receiver: a.receiver}
}

func compareAddresses(a, b addresses) int {
	return cmp.Or(cmp.Compare(a.at.Minor, b.at.Minor), cmp.Compare(a.at.Received, b.at.Received), cmp.Compare(a.at.Family, b.at.Family),
		cmp.Compare(a.len.from, b.len.from), cmp.Compare(a.len.to, b.len.to), cmp.Compare(bit(a.len.host, 1), bit(b.len.host, 1)), slices.Compare(a.sender[:], b.sender[:]), slices.Compare(a.receiver[:], b.receiver[:]))
}

// ordered is an address in the order of this processor, of IPv4 in the first word.
func ordered(a netip.Addr) (w [2]uint64) {
	for i, b := range a.AsSlice() {
		w[i/8] = w[i/8]<<8 | uint64(b)
	}
	return w
}

// words is a MAC address as it lies in the program's memory.
func words(m match.MAC) (w [3]uint16) {
	for i := range w {
		w[i] = native16(m[2*i], m[2*i+1])
	}
	return w
}

func native16(b ...byte) uint16 { return binary.NativeEndian.Uint16(b) }
