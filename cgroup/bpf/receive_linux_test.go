package bpf

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelFlowForms: the kernel takes every form of the receiving side's programs that it
// may be given, and the table of flows outlives their change.
func TestKernelFlowForms(t *testing.T) {
	tctest.RequireRoot(t)
	s, err := loadSet(bind.WayBPF, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	other, err := loadSet(bind.WayBPF, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	var both []*matches
	for _, hosts := range []bool{false, true} {
		m, err := loaded(&tables{hosts: hosts})
		if err != nil {
			t.Fatal(err)
		}
		defer m.close()
		both = append(both, m)
	}
	var former *flows
	for _, x := range []form{{flowProgVifReceiveOld, false, false}, {flowProgVifReceivePlain, false, true}, {flowProgVifReceiveBare, true, false}, {flowProgVifReceive, true, true}} {
		if x.looks && caps.Before(6, 2) {
			continue // the kernel lets nobody look at a socket's cgroup, and forms leaves them out
		}
		t.Run(x.program, func(t *testing.T) {
			if x.looks {
				_, err := btf.LoadKernelSpec()
				tctest.Require(t, err == nil, "BTF")
			}
			f, err := x.load(s, nil, former, 7, 70_000)
			if err != nil {
				t.Fatal(err)
			}
			defer f.close()
			if f.version != way.Version || f.ifb != 7 || f.table.MaxEntries() != 70_000 {
				t.Errorf("made: %+v with room for %d flows", f, f.table.MaxEntries())
			}
			for set, want := range map[*set]bool{s: true, other: !x.looks} {
				if ours, err := f.by(set); err != nil || ours != want {
					t.Errorf("goes by a set: %v, %v; want %v", ours, err, want)
				}
			}
			if former == nil {
				if err := f.table.Put(flowVifFlow{Proto: 6}, flowVifOwner{Class: 5}); err != nil {
					t.Fatal(err)
				}
			}
			var o flowVifOwner
			if err := f.table.Lookup(flowVifFlow{Proto: 6}, &o); err != nil || o.Class != 5 {
				t.Errorf("the flow that was in the table: %+v, %v", o, err)
			}
			for _, m := range both {
				with, err := x.load(s, m, nil, 7, 70_000)
				if err != nil {
					t.Fatal(err)
				}
				if rules, err := m.which(); err != nil || rules == 0 || with.rules != rules || f.rules != 0 {
					t.Errorf("goes by matches %d, and without any by %d, want %d and none, error %v", with.rules, f.rules, rules, err)
				}
				if again, err := openFlows(with.ids); err != nil || again.rules != with.rules {
					t.Errorf("found: %+v, error %v", again, err)
				} else if err := errors.Join(again.close(), with.close()); err != nil {
					t.Error(err)
				}
			}
			found, err := openFlows(f.ids)
			if err != nil {
				t.Fatal(err)
			}
			if found.version != f.version || found.ifb != f.ifb || found.goes != f.goes {
				t.Errorf("found: %+v, made: %+v", found, f)
			}
			if former == nil {
				former = found
				return
			}
			if err := found.close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err := former.close(); err != nil {
		t.Error(err)
	}
}

// TestKernelTableMoved: a table of another room has what the former one had, and what that
// was given meanwhile; where it is smaller, who has sent last.
func TestKernelTableMoved(t *testing.T) {
	tctest.RequireRoot(t)
	const many = 6000
	key := func(i int) flowVifFlow { return flowVifFlow{Proto: 6, Lport: uint16(i)} }
	for _, room := range []uint32{20_000, 2048} {
		x := form{flowProgVifReceiveOld, false, false}
		f, err := x.load(nil, nil, nil, 7, 10_000)
		if err != nil {
			t.Fatal(err)
		}
		defer f.close()
		for i := range many { // in the order of their numbers, over the end of the clock
			if err := f.table.Put(key((i*7)%many), flowVifOwner{Class: 1, Seen: uint16(65_000 + (i*7)%many)}); err != nil {
				t.Fatal(err)
			}
		}
		next, err := x.load(nil, nil, f, 7, room)
		if err != nil {
			t.Fatal(err)
		}
		defer next.close()
		if next.table.MaxEntries() != room {
			t.Fatalf("room for %d, want %d", next.table.MaxEntries(), room)
		}
		m := f.move(next)
		owner := func(i int, to *ebpf.Map) flowVifOwner {
			var o flowVifOwner
			if err := gone(to.Lookup(key(i), &o)); err != nil {
				t.Fatal(err)
			}
			return o
		}
		change := func(i int, to *ebpf.Map, class uint32, seen uint16) {
			if err := to.Put(key(i), flowVifOwner{Class: class, Seen: seen}); err != nil {
				t.Fatal(err)
			}
		}
		end := uint16((65_000 + many) & 0xffff)
		if err := m.first(); err != nil {
			t.Fatal(err)
		}
		change(many, f.table, 2, end)
		change(many-1, f.table, 3, end)
		if err := m.again(); err != nil {
			t.Fatal(err)
		}
		change(many+1, f.table, 4, end)      // noted too late for that
		change(many-2, f.table, 5, end)      // and noted again by the new programs
		change(many-2, next.table, 6, end+1) //
		if err := m.last(); err != nil {
			t.Fatal(err)
		}
		for i, want := range map[int]uint32{many: 2, many - 1: 3, many + 1: 4, many - 2: 6, many - 3: 1, many - min(int(room), many)/2: 1} {
			if got := owner(i, next.table).Class; got != want {
				t.Errorf("room for %d: flow %d has class %d, want %d", room, i, got, want)
			}
		}
		has := 0
		for i := range many + 2 {
			if owner(i, next.table).Class != 0 {
				has++
			}
		}
		if room > many && has != many+2 || has > int(room) {
			t.Errorf("room for %d: %d flows are in it", room, has)
		}
		all := make([]flowVifCounts, ebpf.MustPossibleCPU())
		if err := next.counts.Lookup(uint32(0), &all); err != nil || all[0].Noted != many {
			t.Errorf("room for %d: counted %+v, %v", room, all, err)
		}
		t.Logf("room for %d: %d flows of %d are in it; about %d bytes each", room, has, many+2, flowMemory(room)/uint64(room))
	}
}
