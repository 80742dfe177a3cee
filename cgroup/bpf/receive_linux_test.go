package bpf

import (
	"testing"

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
			f, err := x.load(s, former, 7, 70_000)
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

// TestRoom: every branch has room for flows of its own.
func TestRoom(t *testing.T) {
	for branches, want := range map[int]uint32{0: 65_536, 1: 65_536, 1024: 65_536, 1025: 65_600, 10_000: 640_000, 60_000: 1 << 20} {
		if got := room(branches); got != want {
			t.Errorf("room for the flows of %d branches: %d, want %d", branches, got, want)
		}
	}
}
