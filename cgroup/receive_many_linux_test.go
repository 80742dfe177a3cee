package cgroup_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestKernelReceiveShort: of many short connections, one after the other, each packet
// has its class from the first to the last, also while another branch has as many.
func TestKernelReceiveShort(t *testing.T) {
	for _, w := range exact(t) {
		t.Run(string(w), func(t *testing.T) {
			require(t, w)
			many := 1000
			if vm.Inside() {
				many = 100
			}
			n := newReceiver(t)
			p := newPlace(t, w)
			a, c := sub(t, p.dir, "a"), sub(t, p.dir, "c")
			n.apply(t, n.binder(t, w), bound(p.target(a), red), bound(p.target(c), green))
			inA, inC, farA, farC := n.start(t, n.Near, a), n.start(t, n.Near, c), n.start(t, n.Far, ""), n.start(t, n.Far, "")
			toA, toC := n.Far4.String()+":7801", "["+n.Far6.String()+"]:7802"
			farA.Do("listen l %s", toA)
			farC.Do("listen l %s", toC)
			only(t, n.received(t, func() {
				start := time.Now()
				farA.Begin("serve l %d 2000", many)
				inA.Do("fetch %s %d", toA, many)
				farA.End()
				t.Logf("%.0f connections a second", float64(many)/time.Since(start).Seconds())
			}), red, uint64(4*many))
			got := n.received(t, func() {
				farA.Begin("serve l %d 2000", many)
				farC.Begin("serve l %d 2000", many)
				inC.Begin("fetch %s %d", toC, many)
				inA.Do("fetch %s %d", toA, many)
				inC.End()
				farA.End()
				farC.End()
			})
			if got[red] < uint64(4*many) || got[green] < uint64(4*many) || len(got) != 2 {
				t.Errorf("packets a class: %v, want %d or more of %v and %v each", got, 4*many, red, green)
			}
		})
	}
}

// TestReceiveFull: where one branch has more flows than there is room for, what
// another receives stays what it is where sockets can be looked up. Where they cannot,
// packets of flows that were forgotten go to the rest until the receiver sends again.
// Strangers do not fill the table.
func TestReceiveFull(t *testing.T) {
	const ports, flows = 3, 60_000 // of each; the table has room for 65,536
	for _, tt := range []struct {
		way      bind.Way
		outsider bool // the flows are of strangers who send to one socket
	}{
		{bind.WayBPF, false},
		{bind.WayBPF, true},
		{bind.WayNft, false},
	} {
		t.Run(fmt.Sprintf("%s/outsider=%v", tt.way, tt.outsider), func(t *testing.T) {
			require(t, tt.way)
			n := newReceiver(t)
			p := newPlace(t, tt.way)
			a, c := sub(t, p.dir, "a"), sub(t, p.dir, "c")
			b := n.binder(t, tt.way)
			n.apply(t, b, bound(p.target(a), red), bound(p.target(c), green))
			inA, inC, far, other := n.start(t, n.Near, a), n.start(t, n.Near, c), n.start(t, n.Far, ""), n.start(t, n.Far, "")
			flood, target, host := inA, other, n.Far4.String()
			if tt.outsider {
				flood, target, host = other, inA, n.Near4.String()
			}
			for i := range ports {
				target.Do("sink f%d %s:%d", i, host, 7900+i)
			}
			fill := func() {
				for i := range ports {
					for range 2 { // the table forgets first what it has seen once
						flood.Do("strangers %s:%d %d", host, 7900+i, flows)
					}
				}
			}
			ask := func() {
				far.Begin("answer s 20")
				inC.Do("ask q %v:7810 20", n.Far4)
				far.End()
			}
			far.Do("sink s %v:7810", n.Far4)
			far.Do("listen l %v:7811", n.Far4)
			ask()
			fill()
			_, port, _ := strings.Cut(inC.Do("name q"), ":")
			idle := n.received(t, func() { far.Do("more s %v:%s 20", n.Near4, port) })
			again := n.received(t, ask)
			busy := n.received(t, func() {
				far.Begin("serve l 1 200000000")
				inC.Begin("fetch %v:7811", n.Far4)
				fill()
				inC.End()
				far.End()
			})
			table, err := b.Flows()
			if full := table.Flows > table.Room*9/10; err != nil || full == tt.outsider {
				t.Errorf("the table: %+v, %v", table, err)
			}
			t.Logf("to the rest, of what had been silent: %d of 20 packets; once it has sent: %d of 20; of a download meanwhile: %d, and %d not",
				idle[rest], again[rest], busy[rest], busy[green])
			if again[rest] > 0 || again[green] != 20 {
				t.Errorf("once it has sent again: %v", again)
			}
			if looks(t, tt.way) && (idle[rest] > 0 || busy[rest] > 0 || idle[green] != 20) {
				t.Errorf("silent: %v, a download: %v", idle, busy)
			}
		})
	}
}
