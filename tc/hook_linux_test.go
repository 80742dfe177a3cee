package tc_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// classify is a program that puts every packet into a class and lets other
// filters have their say (TC_ACT_UNSPEC).
func classify(t *testing.T, class hierarchy.ClassID) *ebpf.Program {
	t.Helper()
	const priority = 32 // of struct __sk_buff, linux/bpf.h
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:    ebpf.SchedCLS,
		License: "MIT",
		Instructions: asm.Instructions{
			asm.Mov.Imm32(asm.R0, int32(class)),
			asm.StoreMem(asm.R1, priority, asm.R0, asm.Word),
			asm.Mov.Imm(asm.R0, -1),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func id(t *testing.T, p *ebpf.Program) uint32 {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	n, ok := info.ID()
	if !ok {
		t.Fatal("program without an id")
	}
	return uint32(n)
}

func (b *bench) program() uint32 {
	b.t.Helper()
	n, err := b.EgressProgram()
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

func TestKernelEgress(t *testing.T) {
	b, p := veth(t)
	sink, err := lab.NewSink(t.Context(), p.Far, 9)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	tree := b.tree(hierarchy.Gbit, branch("x", hierarchy.Mbit), branch("y", hierarchy.Mbit))
	b.apply(tree)
	x, y := tree.Find("eth0/x").ID, tree.Find("eth0/y").ID
	px, py := classify(t, x), classify(t, y)
	show := func() string { return tctest.TC(t, p.Near, "qdisc", "show", "dev", "eth0") }
	without := show()

	if n := b.program(); n != 0 {
		t.Errorf("program %d at an untouched hook", n)
	}
	if err := b.DetachEgress(); err != nil {
		t.Errorf("detach of nothing: %v", err)
	}
	attach := func(d *hook.Hooks, prog *ebpf.Program) {
		t.Helper()
		if err := d.AttachEgress(prog.FD(), "vifshape"); err != nil {
			t.Fatal(err)
		}
		if n := b.program(); n != id(t, prog) {
			t.Errorf("program %d, want %d", n, id(t, prog))
		}
	}
	attach(b.Hooks, px)
	b.send(p, 0, 10)
	attach(open(t, p.Near, "eth0").Hooks, py) // in place, by another process as it were
	b.send(p, 0, 7)
	if sx, sy := b.stats(tree, "eth0/x"), b.stats(tree, "eth0/y"); sx.Packets != 10 || sy.Packets != 7 {
		t.Errorf("%d packets in x, %d in y", sx.Packets, sy.Packets)
	}
	if f := tctest.TC(t, p.Near, "filter", "show", "dev", "eth0", "egress"); strings.Count(f, "direct-action") != 1 || !strings.Contains(f, "pref 1 bpf chain 0 handle 0x71f vifshape direct-action") {
		t.Errorf("filters:\n%s", f)
	}
	if err := b.DetachEgress(); err != nil {
		t.Fatal(err)
	}
	if after := show(); after != without {
		t.Errorf("after detach: %q, was %q", after, without)
	}
	b.send(p, 0, 5)
	if s := b.stats(tree, "eth0/rest"); s.Packets != 5 {
		t.Errorf("%d packets in the rest", s.Packets)
	}
}

// What others have at the hooks stays, and stays reachable.
func TestKernelEgressForeign(t *testing.T) {
	tctest.RequireProgram(t, "tc")
	b, p := veth(t)
	run := func(args string) { tctest.TC(t, p.Near, strings.Fields(args)...) }
	prog := classify(t, hierarchy.ID(2))
	filters := func() string {
		return tctest.TC(t, p.Near, "filter", "show", "dev", "eth0", "egress") + tctest.TC(t, p.Near, "filter", "show", "dev", "eth0", "ingress")
	}
	const u32 = " u32 match u32 0 0 action mirred egress redirect dev lo"
	for _, tt := range []struct {
		name, set string
		err       string
	}{
		{"clsact alone", "qdisc add dev eth0 clsact", ""},
		{"filter at egress", "filter add dev eth0 egress protocol ip pref 7" + u32, ""},
		{"filter at ingress", "filter add dev eth0 ingress protocol ip pref 7" + u32, ""},
		{"our preference", "filter add dev eth0 egress protocol ip pref 1" + u32,
			"eth0: attach program at egress: filter of kind u32 with preference 1 at egress is not made by vifshape: give it another preference"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name != "clsact alone" {
				run("qdisc add dev eth0 clsact")
			}
			run(tt.set)
			before := filters()
			err := b.AttachEgress(prog.FD(), "vifshape")
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || err.Error() != tt.err || !errors.Is(err, rtnl.ErrForeign)) {
				t.Errorf("attach: %v", err)
			}
			if err := b.DetachEgress(); err != nil {
				t.Error(err)
			}
			if after := filters(); after != before {
				t.Errorf("filters\n%swere\n%s", after, before)
			}
			if kept := strings.Contains(tctest.TC(t, p.Near, "qdisc", "show", "dev", "eth0"), "clsact"); kept != (before != "") {
				t.Errorf("clsact is there: %v", kept)
			}
			if before != "" {
				run("qdisc del dev eth0 clsact")
			}
		})
	}
	run("qdisc add dev eth0 ingress")
	err := b.AttachEgress(prog.FD(), "vifshape")
	if want := `eth0: qdisc ingress is not made by vifshape and leaves no place for clsact: remove it with "tc qdisc del dev eth0 ingress"`; !errors.Is(err, rtnl.ErrForeign) || err.Error() != want {
		t.Errorf("attach beside an ingress qdisc: %v", err)
	}
}

// TestKernelIngress: programs at the ingress of another interface, of two interfaces
// that do not know of each other.
func TestKernelIngress(t *testing.T) {
	tctest.RequireProgram(t, "tc")
	b, p := veth(t)
	a, c := b, open(t, p.Near, "lo")
	const port = "port0"
	if err := lab.AddVeth(p.Near, lab.Link{Name: port}, p.Far, lab.Link{Name: "port1"}); err != nil {
		t.Fatal(err)
	}
	prog := classify(t, hierarchy.ID(2))
	run := func(args string) { tctest.TC(t, p.Near, strings.Fields(args)...) }
	shown := func() string {
		return tctest.TC(t, p.Near, "qdisc", "show", "dev", port) + tctest.TC(t, p.Near, "filter", "show", "dev", port, "ingress")
	}
	has := func(d *bench, want bool) {
		t.Helper()
		if on, err := d.HasIngress(port); on != want || err != nil {
			t.Errorf("%s: program at the port: %v, %v, want %v", d.Name, on, err, want)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const u32 = " u32 match u32 0 0 action mirred egress redirect dev lo"
	for _, tt := range []struct {
		name string
		set  []string
		kind string // of the qdisc while the programs are there
	}{
		{"nothing", nil, "clsact"},
		{"filter at clsact", []string{"qdisc add dev port0 clsact", "filter add dev port0 ingress protocol ip pref 7" + u32}, "clsact"},
		{"filter at ingress", []string{"qdisc add dev port0 ingress", "filter add dev port0 ingress protocol ip pref 7" + u32}, "ingress"},
		{"filter at egress", []string{"qdisc add dev port0 clsact", "filter add dev port0 egress protocol ip pref 7" + u32}, "clsact"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, s := range tt.set {
				run(s)
			}
			before := shown()
			do(a.DetachIngress(port)) // none is no error
			has(a, false)
			for range 2 { // again is no error
				do(a.AttachIngress(port, prog.FD(), "mark"))
			}
			has(a, true)
			has(c, false)
			do(c.AttachIngress(port, prog.FD(), "mark"))
			if now := shown(); strings.Count(now, "direct-action") != 2 || !strings.Contains(now, tt.kind) {
				t.Errorf("with both:\n%s", now)
			}
			do(a.DetachIngress(port))
			has(a, false)
			has(c, true)
			do(c.DetachIngress(port))
			if after := shown(); after != before {
				t.Errorf("afterwards\n%swas\n%s", after, before)
			}
			if len(tt.set) > 0 {
				run("qdisc del dev port0 " + tt.kind)
			}
		})
	}
	run("qdisc add dev port0 clsact")
	run("filter add dev port0 ingress protocol ip pref 1" + u32)
	err := a.AttachIngress(port, prog.FD(), "mark")
	if want := "port0: attach program at ingress: filter of kind u32 with preference 1 at ingress is not made by vifshape: give it another preference"; !errors.Is(err, rtnl.ErrForeign) || err.Error() != want {
		t.Errorf("in a foreign place: %v", err)
	}
	if on, err := a.HasIngress(port); on || !errors.Is(err, rtnl.ErrForeign) {
		t.Errorf("in a foreign place: %v, %v", on, err)
	}
	var no *link.NotFoundError
	if err := a.AttachIngress("none0", prog.FD(), "mark"); !errors.As(err, &no) {
		t.Errorf("at no interface: %v", err)
	}
}

func TestKernelCgroupFilter(t *testing.T) {
	b, p := veth(t)
	b.apply(b.tree(hierarchy.Gbit))
	has := func(want bool) {
		t.Helper()
		if found, err := b.CgroupFilter(); err != nil || found != want {
			t.Errorf("found %v, %v, want %v", found, err, want)
		}
	}
	has(false)
	err := b.AttachCgroupFilter()
	if errors.Is(err, rtnl.ErrNotSupported) {
		if !strings.Contains(err.Error(), "cls_cgroup") {
			t.Errorf("refusal does not name the module: %v", err)
		}
		if err := b.DetachCgroupFilter(); err != nil {
			t.Error(err)
		}
		if vm.Inside() {
			t.Error("the machine has no cls_cgroup")
		}
		return // TestVM goes on
	}
	for range 2 { // again is no error
		if err != nil {
			t.Fatal(err)
		}
		err = b.AttachCgroupFilter()
	}
	has(true)
	if f := tctest.TC(t, p.Near, "filter", "show", "dev", "eth0", "parent", "71f:"); strings.Count(f, "cgroup") == 0 {
		t.Errorf("filters:\n%s", f)
	}
	if err := b.DetachCgroupFilter(); err != nil {
		t.Fatal(err)
	}
	has(false)
}
