//go:build linux

package tc

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

func TestEncodeClass(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags netlink.HeaderFlags
		class hierarchy.Class
		want  string
	}{{
		// tc class add dev IF classid 71f:1 root htb rate 1gbit burst 1600b cburst 1600b quantum 65536
		"top", netlink.Create | netlink.Excl,
		hierarchy.Class{ID: hierarchy.ID(1), Parent: hierarchy.ID(0), Rate: hierarchy.Gbit, Ceil: hierarchy.Gbit, Burst: 1600, CBurst: 1600},
		`00000000 05000000 01001f07 ffffffff 00000000
		 08000100 68746200
		 34000280 30000100
		 00010000 00000000 40597307
		 00010000 00000000 40597307
		 c8000000 c8000000 00000100 00000000 00000000`,
	}, {
		// tc class change dev IF parent 71f:1 classid 71f:10 htb rate 10mbit ceil 20mbit burst 15k cburst 20k quantum 3000 prio 3 overhead 22 mpu 64 linklayer atm
		"leaf", 0,
		hierarchy.Class{
			ID: hierarchy.ID(0x10), Parent: hierarchy.ID(1), Rate: 10 * hierarchy.Mbit, Ceil: 20 * hierarchy.Mbit, Burst: 15360, CBurst: 20480,
			Quantum: 3000, Prio: 3, Link: hierarchy.LinkLayer{Overhead: 22, MPU: 64, ATM: true},
		},
		`00000000 05000000 10001f07 01001f07 00000000
		 08000100 68746200
		 34000280 30000100
		 00021600 00004000 d0121300
		 00021600 00004000 a0252600
		 00ee0200 00f40100 b80b0000 00000000 03000000`,
	}, {
		// tc class add dev IF parent 71f:1 classid 71f:11 htb rate 30gbit ceil 100gbit burst 1mb cburst 1mb quantum 200000
		"rate above 32 bits", netlink.Create | netlink.Excl,
		hierarchy.Class{ID: hierarchy.ID(0x11), Parent: hierarchy.ID(1), Rate: 30 * hierarchy.Gbit, Ceil: 100 * hierarchy.Gbit, Burst: 1 << 20, CBurst: 1 << 20, Quantum: 200000},
		`00000000 05000000 11001f07 01001f07 00000000
		 08000100 68746200
		 40000280 30000100
		 00010000 00000000 807584df
		 00010000 00000000 ffffffff
		 12110000 1f050000 400d0300 00000000 00000000
		 0c000700 00dd0ee9 02000000`,
	}} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := encodeClass(5, tt.flags, &tt.class)
			if err != nil {
				t.Fatal(err)
			}
			tctest.Golden(t, m, tt.flags, tt.want)
			got, ok, err := DecodeClass(m.Data)
			if err != nil || !ok {
				t.Fatal(ok, err)
			}
			want := tt.class
			if want.Quantum == 0 {
				want.Quantum = innerQuantum
			}
			if err := settleClass(&want, 0); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("decoded (-want +got)\n%s", d)
			}
		})
	}
}

// tc qdisc add dev IF root handle 71f: htb default 2 r2q 10 direct_qlen 0
func TestEncodeRoot(t *testing.T) {
	flags := netlink.Create | netlink.Excl
	tctest.Golden(t, encodeRoot(5, flags), flags, `00000000 05000000 00001f07 ffffffff 00000000
		 08000100 68746200
		 24000280 18000200
		 03000000 0a000000 02000000 00000000 00000000
		 08000500 00000000`)
}

func TestEncodeClassRefused(t *testing.T) {
	ok := hierarchy.Class{ID: hierarchy.ID(0x10), Parent: hierarchy.ID(1), Rate: hierarchy.Mbit, Ceil: hierarchy.Mbit}
	for _, tt := range []struct {
		name   string
		change func(*hierarchy.Class)
		want   string
	}{
		{"overhead", func(c *hierarchy.Class) { c.Link.Overhead = -4 }, "overhead -4 is negative: HTB can only add to a packet's length"},
		{"mpu", func(c *hierarchy.Class) { c.Link.MPU = 65536 }, "mpu 64kib is more than 65535b"},
		{"burst", func(c *hierarchy.Class) { c.Burst = 1 << 30 }, "burst 1gib is more than the kernel can count at 1mbit: at most 34359738b"},
		{"cburst", func(c *hierarchy.Class) { c.CBurst = 1 << 30 }, "cburst 1gib is more than the kernel can count at 1mbit: at most 34359738b"},
		{"quantum", func(c *hierarchy.Class) { c.Quantum = 1 << 31 }, "quantum 2gib is more than the kernel's 2147483647b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := ok
			tt.change(&c)
			if _, err := encodeClass(1, 0, &c); err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestParentsFirst(t *testing.T) {
	class := func(minor, parent uint16) hierarchy.Class {
		return hierarchy.Class{ID: hierarchy.ID(minor), Parent: hierarchy.ID(parent), Quantum: 9, Prio: 3}
	}
	got := parentsFirst([]hierarchy.Class{class(3, 0x20), class(2, 1), class(0x20, 1), class(1, 0), class(7, 0x99), class(4, 0x20)})
	inner := func(c hierarchy.Class) hierarchy.Class {
		c.Quantum, c.Prio = 0, 0
		return c
	}
	want := []hierarchy.Class{inner(class(1, 0)), class(2, 1), inner(class(0x20, 1)), class(3, 0x20), class(4, 0x20), class(7, 0x99)}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestDecodeStats(t *testing.T) {
	e := rtnl.Encoder{}
	e.TcMsg(rtnl.TcMsg{Index: 5, Handle: uint32(hierarchy.ID(0x10))})
	e.AttrString(unix.TCA_KIND, "htb")
	e.Nest(unix.TCA_STATS2, func() {
		e.Attr(statsBasic, func() { e.Uint64(1 << 40); e.Uint32(7); e.Uint32(0) })
		e.Attr64(statsPackets64, 1<<33+7)
		e.Attr(statsQueue, func() { e.Uint32(1); e.Uint32(2); e.Uint32(3); e.Uint32(4); e.Uint32(5) })
		e.Attr(statsRateEst, func() { e.Uint32(1000); e.Uint32(1) })
		e.Attr(statsRateEst64, func() { e.Uint64(1 << 33); e.Uint64(1) })
		e.Attr(statsApp, func() { e.Uint32(11); e.Uint32(12); e.Uint32(0); e.Uint32(0); e.Uint32(0) })
	})
	want := ClassStats{
		Class:    hierarchy.ID(0x10),
		Counters: Counters{Bytes: 1 << 40, Packets: 1<<33 + 7, QLen: 1, Backlog: 2, Drops: 3, Requeues: 4, Overlimits: 5},
		Lends:    11, Borrows: 12, Estimate: 1 << 36,
	}
	got, err := decodeClassStats(e.B)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	for n := range e.B {
		if _, err := decodeClassStats(e.B[:n]); err == nil && n > rtnl.SizeofTcMsg && n%4 != 0 {
			t.Errorf("no error for the first %d bytes", n)
		}
	}
}

func FuzzDecodeClass(f *testing.F) {
	for _, c := range []hierarchy.Class{
		{ID: hierarchy.ID(1), Parent: hierarchy.ID(0), Rate: 100 * hierarchy.Gbit, Ceil: 100 * hierarchy.Gbit, Burst: 1 << 20, CBurst: 1 << 20},
		{ID: hierarchy.ID(2), Parent: hierarchy.ID(1), Rate: 8, Ceil: 800, Burst: 5, CBurst: 5, Quantum: 1, Prio: 7},
	} {
		m, err := encodeClass(1, 0, &c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Data)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = decodeClassStats(b)
		c, ok, err := DecodeClass(b)
		if err != nil || !ok || c.Rate == 0 || c.Ceil == 0 || c.Quantum == 0 {
			return
		}
		// What was read can be written, unless HTB could never have kept it.
		m, err := encodeClass(1, 0, &c)
		if err != nil {
			return
		}
		again, ok, err := DecodeClass(m.Data)
		if c.Parent.Minor() == 0 {
			c.Parent = hierarchy.ClassID(uint32(c.ID.Major()) << 16)
		}
		if err != nil || !ok || again != c {
			t.Fatalf("%+v\nwritten and read: %+v, %v", c, again, err)
		}
	})
}

func FuzzDecodeCounters(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{16, 0, statsBasic, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = new(Counters).decode(b, nil)
	})
}
