package cgroup_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestKernelReceiveSwitched: while the receiving side is switched on and off, and the
// classifier changes to another way and back, nothing that arrives is lost, and nothing
// that goes through its tree is in another branch's class: where sockets are looked up not
// even in the rest's.
func TestKernelReceiveSwitched(t *testing.T) {
	for _, w := range []bind.Way{bind.WayBPF, bind.WayNft} {
		t.Run(string(w), func(t *testing.T) {
			require(t, bind.WayBPF)
			require(t, w)
			n := newReceiver(t)
			p := newPlace(t, bind.WayBPF)
			a := sub(t, p.dir, "a")
			other := n.binder(t, w)
			b := n.binder(t, bind.WayBPF)
			red := bound(p.target(a), red)
			n.apply(t, b, red)
			near, far := n.start(t, n.Near, a), n.start(t, n.Far, "")
			client, server := n.start(t, n.Near, a), n.start(t, n.Far, "")
			at, to := n.Near4.String()+":7000", n.Far4.String()+":7001"
			near.Do("sink s %s", at)
			near.Do("set s 1 33 00000010") // SO_RCVBUFFORCE
			far.Do("keep u %s", at)
			server.Do("listen l %s", to)
			const times, packets = 100, 200
			got := uint64(0)
			through := n.received(t, func() {
				server.Begin("serve l 1 20000000")
				client.Begin("fetch %s", to)
				for i := range times {
					far.Begin("more u %s %d", at, packets)
					switch i % 4 {
					case 0:
						apply(t, b, red)
					case 2:
						n.apply(t, other, red)
					default:
						n.apply(t, b, red)
					}
					far.End()
				}
				client.End()
				server.End()
			})
			got = count(t, near, "s")
			if want := uint64(times * packets); got != want {
				t.Errorf("%d of %d datagrams have arrived", got, want)
			}
			if w == bind.WayBPF && looks(t, w) {
				only(t, through, red.Class, packets)
			}
			for class := range through {
				if class != red.Class && class != rest {
					t.Errorf("packets a class: %v, want none of %v", through, class)
				}
			}
			t.Logf("packets a class: %v", through)
		})
	}
}

// TestKernelReceiveFlooded: who notes more flows than the table has room for takes nothing
// out of another's branch but what is received before the next packet is sent, and not
// even that where its socket is looked up.
func TestKernelReceiveFlooded(t *testing.T) {
	for _, w := range []bind.Way{bind.WayBPF, bind.WayNft} {
		t.Run(string(w), func(t *testing.T) {
			require(t, w)
			n := newReceiver(t)
			n.flows = 1 << 12
			const strangers = 4000
			p := newPlace(t, w)
			a, c := sub(t, p.dir, "a"), sub(t, p.dir, "c")
			b := n.binder(t, w)
			n.apply(t, b, bound(p.target(a), red), bound(p.target(c), green))
			busy, silent, attacker, far := n.start(t, n.Near, a), n.start(t, n.Near, a), n.start(t, n.Near, c), n.start(t, n.Far, "")
			at := [...]string{n.Far4.String() + ":7000", n.Far4.String() + ":7001"}
			for i, x := range []string{"busy", "silent"} {
				far.Do("sink %s %s", x, at[i])
			}
			ask := func() counts {
				return n.received(t, func() {
					far.Begin("answer busy 20")
					busy.Do("ask q %s 20", at[0])
					far.End()
				})
			}
			silent.Do("sink q %s", n.Near4.String()+":900")
			silent.Do("more q %s 20", at[1])
			if diff := cmp.Diff(counts{red: 20}, ask()); diff != "" {
				t.Errorf("before: packets a class (-want +got):\n%s", diff)
			}
			for i := range 6 {
				attacker.Do("strangers %v:%d %d", n.Far4, 20_000+i, strangers)
				if diff := cmp.Diff(counts{red: 20}, ask()); diff != "" && (w == bind.WayBPF && looks(t, w)) {
					t.Errorf("meanwhile: packets a class (-want +got):\n%s", diff)
				}
			}
			got := n.received(t, func() { far.Do("answer silent 20") })
			if diff := cmp.Diff(counts{red: 20}, got); diff != "" && w == bind.WayBPF && looks(t, w) {
				t.Errorf("for who was silent: packets a class (-want +got):\n%s", diff)
			}
			table, err := b.Flows()
			if err != nil || table.Noted < 5*strangers {
				t.Errorf("the table was not flooded: %+v, %v", table, err)
			}
			t.Logf("for who was silent: %v; %+v", got, table)
			silent.Do("more q %s 20", at[1])
			if diff := cmp.Diff(counts{red: 20}, n.received(t, func() { far.Do("answer silent 20") })); diff != "" {
				t.Errorf("after it has sent: packets a class (-want +got):\n%s", diff)
			}
		})
	}
}

// TestKernelReceiveResized: what is received stays in its branch when there is to be room
// for more or fewer flows, though the table alone knows them, and nothing is lost meanwhile.
func TestKernelReceiveResized(t *testing.T) {
	for _, w := range []bind.Way{bind.WayBPF, bind.WayNft} {
		t.Run(string(w), func(t *testing.T) {
			require(t, w)
			n := newReceiver(t)
			p := newPlace(t, w)
			a := sub(t, p.dir, "a")
			b := n.binder(t, w)
			all := []hierarchy.Bound{bound(p.target(a), red)}
			// of whom the table alone knows: by way nft everybody, else who has no socket here
			silent, from, want := n.start(t, n.Near, a), n.Near4.String(), red
			if w == bind.WayBPF {
				d := n.docker(t, 3)
				inner := d.container("veth1", 11)
				t.Logf("translated: %v", d.masquerade())
				all = append(all, bound("link:veth1", blue))
				silent, from, want = n.start(t, inner, sub(t, p.dir, "free")), d.addr(11).String(), blue
			}
			n.apply(t, b, all...)
			near, far, client, server := n.start(t, n.Near, a), n.start(t, n.Far, ""), n.start(t, n.Near, a), n.start(t, n.Far, "")
			in, at, to := n.Near4.String()+":7000", n.Far4.String()+":7002", n.Far4.String()+":7001"
			silent.Do("sink q %s", from+":900")
			far.Do("sink silent %s", at)
			near.Do("sink s %s", in)
			near.Do("set s 1 33 00000010") // SO_RCVBUFFORCE
			far.Do("keep u %s", in)
			server.Do("listen l %s", to)
			sizes, times := []uint32{100_000, 1024, 1 << 16, 2048}, 24
			if vm.Inside() { // where it takes a second to load the programs
				times = 4
			}
			for _, flows := range sizes { // which is sent before and answered after
				silent.Do("more q %s 20", at)
				n.flows = flows
				n.apply(t, b, all...)
				if diff := cmp.Diff(counts{want: 20}, n.received(t, func() { far.Do("answer silent 20") })); diff != "" {
					t.Errorf("room for %d flows: packets a class (-want +got):\n%s", flows, diff)
				}
				if table, err := b.Flows(); err != nil || table.Room != int(flows) || table.Flows == 0 || table.Noted < uint64(table.Flows) {
					t.Errorf("room for %d flows: %+v, %v", flows, table, err)
				}
			}
			const packets = 200
			through := n.received(t, func() {
				server.Begin("serve l 1 20000000")
				client.Begin("fetch %s", to)
				for i := range times {
					far.Begin("more u %s %d", in, packets)
					n.flows = sizes[i%len(sizes)]
					n.apply(t, b, all...)
					far.End()
				}
				client.End()
				server.End()
			})
			if got := count(t, near, "s"); got != uint64(times*packets) {
				t.Errorf("%d of %d datagrams have arrived", got, times*packets)
			}
			// who never sends is looked up, or the rest's; the download is always its branch's
			unknown := uint64(times * packets)
			if looks(t, w) {
				unknown = 0
			}
			if through[rest] != unknown || through[red] < packets || len(through) > 2 {
				t.Errorf("packets a class: %v, want %d of the rest and the others of %v", through, unknown, red)
			}
			t.Logf("packets a class: %v", through)
		})
	}
}
