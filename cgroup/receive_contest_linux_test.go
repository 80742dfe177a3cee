package cgroup_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelReceiveContested: who sends by another's addresses, whatever kind of socket
// that takes, gets the other's answers into his branch only where the kernel gives them
// to him.
func TestKernelReceiveContested(t *testing.T) {
	require(t, bind.WayBPF)
	n := newReceiver(t)
	routed := n.routed(t, "veth3", 4)
	d := n.docker(t, 3)
	p := newPlace(t, bind.WayBPF)
	a, c, free := sub(t, p.dir, "a"), sub(t, p.dir, "c"), sub(t, p.dir, "free")
	one, two := d.container("veth1", 11), d.container("veth2", 12)
	b := n.binder(t, bind.WayBPF)
	n.apply(t, b, bound("link:veth1", red), bound("link:veth2", green), bound("link:veth3", green), bound(p.target(a), red), bound(p.target(c), green))
	far := n.start(t, n.Far, "")
	sees := looks(t, bind.WayBPF)
	port := 8000
	near := func() string { return fmt.Sprintf("%v:%d", n.Near4, port) }
	inner := func() string { return fmt.Sprintf("%v:%d", d.addr(11), port) }
	to := func() string { return fmt.Sprintf("%v:%d", n.Far4, port) }
	// answers are those that the far end gives to a number of packets that it has got.
	answers := func(k int) counts { return n.received(t, func() { far.Do("answer s%d %d", port, k) }) }
	same := func(t *testing.T, what string, want, got counts) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: packets a class (-want +got):\n%s", what, diff)
		}
	}
	transparent := func(x *tctest.Actor, from string) {
		x.Do("keep q %s", from)
		x.Do("set q 0 19 01000000") // IP_TRANSPARENT
		x.Do("bind q %s", from)
	}
	owned := func(x *tctest.Actor, from string) { x.Do("sink q %s", from) }
	forge := func(from func() string) func(x *tctest.Actor) {
		return func(x *tctest.Actor) { x.Do("forge 17 %s %s 5", from(), to()) }
	}
	above := func(t *testing.T) *lab.NetNS { // with the near end's address
		tctest.RequireLink(t, "macvlan")
		ns := tctest.NetNS(t)
		onlyIPv4(t, ns)
		l := lab.Link{Name: "above0", Kind: "macvlan", Parent: n.Dev, NetNS: ns, Addrs: []netip.Prefix{netip.PrefixFrom(n.Near4, 24)}}
		if err := n.Near.AddLink(l); err != nil {
			t.Fatal(err)
		}
		d.neighbour(ns, "above0", n.Far4, hardware(t, n.Far, n.FarDev))
		return ns
	}
	here := func(*testing.T) *lab.NetNS { return n.Near }
	in := func(ns *lab.NetNS) func(*testing.T) *lab.NetNS {
		return func(*testing.T) *lab.NetNS { return ns }
	}
	for _, tt := range []struct {
		name     string
		victimIn *lab.NetNS
		victim   string // cgroup
		address  func() string
		in       func(*testing.T) *lab.NetNS
		cgroup   string
		open     func(*tctest.Actor) // by what the attacker sends; nil: forge alone
		forge    func(*tctest.Actor)
		five     bool // all five packets of it get to the far end
	}{
		{"a raw socket", n.Near, a, near, here, c, nil, forge(near), true},
		{"a raw socket as a container", one, free, inner, here, c, nil, forge(inner), true},
		{"an address of a container", one, free, inner, here, c, func(x *tctest.Actor) { transparent(x, inner()) }, nil, true},
		{"a routed container as a bridged one", one, free, inner, in(routed), free, nil, forge(inner), true},
		{"a container as this machine", n.Near, a, near, in(two), free, nil, forge(near), false},
		{"an interface above in another namespace", n.Near, a, near, above, c, func(x *tctest.Actor) { owned(x, near()) }, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, first := range []bool{false, true} {
				port++
				victim, attacker := n.start(t, tt.victimIn, tt.victim), n.start(t, tt.in(t), tt.cgroup)
				far.Do("sink s%d %s", port, to())
				victim.Do("sink q %s", tt.address())
				open := tt.open
				attack := func() {
					if tt.open != nil {
						if open != nil {
							open(attacker)
							open = nil
						}
						attacker.Do("more q %s 5", to())
					} else {
						tt.forge(attacker)
					}
				}
				k := map[bool]int{true: 5}[tt.five]
				if first { // before its owner has sent
					attack()
					got := answers(k)
					// Where nobody is found here, the first one has it.
					if k > 0 && sees && tt.victimIn == n.Near && tt.open == nil {
						same(t, "before", counts{red: 5}, got)
					}
				}
				victim.Do("more q %s 5", to())
				same(t, "its own", counts{red: 5}, answers(5))
				attack()
				if k > 0 {
					same(t, "after the attack", counts{red: 5}, answers(k))
				}
				victim.Do("more q %s 5", to())
				same(t, "its own again", counts{red: 5}, answers(5))
				victim.Dismiss()
				attacker.Dismiss()
			}
		})
	}

	// Of containers behind one bridge the first one has it, for as long as he sends.
	for name, open := range map[string]func(*tctest.Actor){
		"a container as another":             nil,
		"a container with another's address": func(x *tctest.Actor) { transparent(x, inner()) },
	} {
		t.Run(name, func(t *testing.T) {
			port++
			victim, attacker := n.start(t, one, free), n.start(t, two, free)
			far.Do("sink s%d %s", port, to())
			victim.Do("sink q %s", inner())
			victim.Do("more q %s 5", to())
			same(t, "its own", counts{red: 5}, answers(5))
			if open != nil {
				open(attacker)
				attacker.Do("more q %s 5", to())
			} else {
				forge(inner)(attacker)
			}
			same(t, "after the attack", counts{red: 5}, answers(5))
			victim.Do("more q %s 5", to())
			same(t, "its own again", counts{red: 5}, answers(5))
		})
	}

	// A port that two have is the kernel's to give, and this goes by what it does.
	for option, name := range map[int]string{15: "SO_REUSEPORT", 2: "SO_REUSEADDR"} {
		t.Run(name, func(t *testing.T) {
			port++
			far.Do("sink s%d %s", port, to())
			victim, attacker := n.start(t, n.Near, a), n.start(t, n.Near, c)
			for _, x := range []*tctest.Actor{victim, attacker} {
				x.Do("keep q %s", near())
				x.Do("set q 1 %d 01000000", option)
				x.Do("bind q %s", near())
			}
			answered := 0
			for _, x := range []*tctest.Actor{victim, attacker, victim, attacker} {
				x.Do("more q %s 5", to())
				got := answers(5)
				if answered += 5; answered < 15 { // who is to get them has not sent yet
					count(t, victim, "q")
					count(t, attacker, "q")
					continue
				}
				want := counts{}
				for class, z := range map[hierarchy.ClassID]*tctest.Actor{red: victim, green: attacker} {
					if k := count(t, z, "q"); k > 0 {
						want[class] = k
					}
				}
				same(t, "answers", want, got)
			}
		})
	}
}

// TestKernelReceivePretended: any socket may send by an own address that another one is bound
// to (IP_PKTINFO). That gets it nothing of what this one receives, though it has never sent.
func TestKernelReceivePretended(t *testing.T) {
	for _, w := range exact(t) {
		t.Run(string(w), func(t *testing.T) {
			require(t, w)
			n := newReceiver(t)
			p := newPlace(t, w)
			a, c := sub(t, p.dir, "a"), sub(t, p.dir, "c")
			b := n.binder(t, w)
			n.apply(t, b, bound(p.target(a), red), bound(p.target(c), green))
			owner, pretender, far := n.start(t, n.Near, a), n.start(t, n.Near, c), n.start(t, n.Far, "")
			silent := red
			if !looks(t, w) {
				silent = rest
			}
			for i, end := range [][2]netip.Addr{{n.Near4, n.Far4}, {n.Near6, n.Far6}} {
				port := uint16(7900 + i)
				at, to := netip.AddrPortFrom(end[0], port), netip.AddrPortFrom(end[1], port)
				far.Do("sink s%d %v", i, to)
				owner.Do("sink q%d %v", i, at)
				answers := func() counts { return n.received(t, func() { far.Do("answer s%d 5", i) }) }
				pretender.Do("pretend %v %v 5", at, to)
				only(t, answers(), silent, 5)
				owner.Do("more q%d %v 5", i, to)
				only(t, answers(), red, 5)
				pretender.Do("pretend %v %v 5", at, to)
				only(t, answers(), red, 5)
			}
		})
	}
}

// TestKernelReceiveSucceeded: who receives where another one has sent from, and does not send
// himself, is found a second later.
func TestKernelReceiveSucceeded(t *testing.T) {
	require(t, bind.WayBPF)
	if !looks(t, bind.WayBPF) { // then nobody is found
		return
	}
	n := newReceiver(t)
	p := newPlace(t, bind.WayBPF)
	a, c := sub(t, p.dir, "a"), sub(t, p.dir, "c")
	b := n.binder(t, bind.WayBPF)
	n.apply(t, b, bound(p.target(a), red), bound(p.target(c), green))
	former, next, far := n.start(t, n.Near, a), n.start(t, n.Near, c), n.start(t, n.Far, "")
	at := func(port int) string { return fmt.Sprintf("%v:%d", n.Near4, port) }
	to := func(port int) string { return fmt.Sprintf("%v:%d", n.Far4, port) }
	const closed, beside, heard = 7950, 7951, 7952
	for _, port := range []int{closed, beside, heard} {
		far.Do("sink s%d %s", port, to(port))
		former.Do("keep q%d %s", port, at(port))
		former.Do("set q%d 1 15 01000000", port) // SO_REUSEPORT
		former.Do("bind q%d %s", port, at(port))
		if port == heard { // it is known by what it receives alone
			former.Do("plug q%d %s", port, to(port))
			only(t, n.received(t, func() { far.Do("more s%d %s 5", port, at(port)) }), red, 5)
		} else {
			former.Do("more q%d %s 5", port, to(port))
			only(t, n.received(t, func() { far.Do("answer s%d 5", port) }), red, 5)
		}
		if port != beside {
			former.Do("close q%d", port)
		}
	}
	for _, port := range []int{closed, beside, heard} {
		next.Do("keep q%d %s", port, at(port))
		next.Do("set q%d 1 15 01000000", port)
		next.Do("bind q%d %s", port, at(port))
		next.Do("plug q%d %s", port, to(port)) // so that it is this one that gets it
	}
	time.Sleep(1300 * time.Millisecond) // the unit of time that flows are held against is a second, or a little more
	for _, port := range []int{closed, beside, heard} {
		only(t, n.received(t, func() { far.Do("more s%d %s 5", port, at(port)) }), green, 5)
		if got := count(t, next, fmt.Sprintf("q%d", port)); got != 5 {
			t.Errorf("port %d: %d datagrams came", port, got)
		}
	}
}
