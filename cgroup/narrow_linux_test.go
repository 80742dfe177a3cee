package cgroup_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
)

// askSockets says what a process may ask of its sockets.
func askSockets() error {
	packet, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	tcp, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	fmt.Println("bypass:", unix.SetsockoptInt(packet, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1))
	fmt.Println("another option:", unix.SetsockoptInt(packet, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2))
	fmt.Println("smc:", unix.SetsockoptString(tcp, unix.IPPROTO_TCP, unix.TCP_ULP, "smc"))
	// The kernel takes the first four bytes of it, and all of it passes the program.
	long := strings.Repeat("\x00\x40\x00\x00", 4096)
	fmt.Println("long value:", unix.SetsockoptString(tcp, unix.SOL_SOCKET, unix.SO_SNDBUF, long))
	size, err := unix.GetsockoptInt(tcp, unix.SOL_SOCKET, unix.SO_SNDBUF)
	fmt.Println("taken:", size, err)
	xdp, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		fmt.Println("xdp:", unix.EPERM)
		return nil
	}
	fmt.Println("xdp:", unix.SetsockoptInt(xdp, unix.SOL_XDP, unix.XDP_TX_RING, 64))
	return err
}

// guards are the names of the programs against sockets past the queues on a cgroup.
func guards(t testing.TB, dir string) (names []string) {
	t.Helper()
	for _, p := range guardPrograms(t, dir) {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

func guardPrograms(t testing.TB, dir string) (all []*ebpf.Program) {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	q, err := link.QueryPrograms(link.QueryOptions{Target: int(d.Fd()), Attach: ebpf.AttachCGroupSetsockopt})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range q.Programs {
		p, err := ebpf.NewProgramFromID(x.ID)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		all = append(all, p)
	}
	return all
}

// detach takes every such program away, as somebody else might.
func detach(t testing.TB, dir string) {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, p := range guardPrograms(t, dir) {
		if err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(d.Fd()), Program: p, Attach: ebpf.AttachCGroupSetsockopt}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKernelNarrow: root's sockets in a bound cgroup, and below, cannot be made to
// go round the queues; nothing else is changed for them.
func TestKernelNarrow(t *testing.T) {
	for _, way := range ways(t) {
		if !v2(way) {
			continue // cgroup v1 has no such programs
		}
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			p := newPlace(t, way)
			dir := sub(t, p.dir, "a")
			below := sub(t, dir, "b")
			t.Cleanup(func() { removeAll(t, dir) })
			b := n.binder(t, way)
			target := p.target(dir)
			apply(t, b, bound(target, red))
			narrow := func(yes bool) {
				t.Helper()
				refused := "<nil>"
				if yes {
					refused = unix.EPERM.Error()
				}
				cmd := tctest.Command(t, "join", below, ";", "askSockets")
				out, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				got := strings.Split(strings.TrimSpace(string(out)), "\n")
				want := []string{"bypass: " + refused, "another option: <nil>", "smc: " + refused, "long value: <nil>", "taken: 32768 <nil>", "xdp: " + refused}
				if !yes { // the kernel's own answers, which differ
					got[2], want[2], got[5], want[5] = "", "", "", ""
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("guarded: %v (-want +got):\n%s", yes, diff)
				}
			}
			narrow(true)
			first := guards(t, dir)
			if len(first) != 1 || len(guards(t, below)) != 0 {
				t.Fatalf("programs %q on the bound cgroup, %q below it", first, guards(t, below))
			}

			// a second time changes nothing, by anybody
			apply(t, n.binder(t, way), bound(target, red))
			apply(t, b, bound(target, green))
			if diff := cmp.Diff(first, guards(t, dir)); diff != "" {
				t.Errorf("programs the second time (-want +got):\n%s", diff)
			}

			// somebody takes it away: the plan shows it, and puts it back
			detach(t, dir)
			narrow(false)
			var s hierarchy.State
			if err := b.Read(t.Context(), &s); err != nil {
				t.Fatal(err)
			}
			want := []hierarchy.Bound{{Target: targetOf(target), Class: green, Open: true}}
			if diff := cmp.Diff(want, s.Bound); diff != "" {
				t.Errorf("bound (-want +got):\n%s", diff)
			}
			apply(t, n.binder(t, way), bound(target, green))
			narrow(true)

			// it goes with the binding, and others' stay
			apply(t, b)
			narrow(false)
			if g := guards(t, dir); len(g) != 0 {
				t.Errorf("programs without a binding: %q", g)
			}
		})
	}
}

// TestKernelNarrowRefused: somebody else's program that suffers none below it keeps
// the guard from the cgroups there, which is told, and from no others.
func TestKernelNarrowRefused(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	foreign := sub(t, p.dir, "a")
	below, other := sub(t, foreign, "b"), sub(t, p.dir, "c")
	t.Cleanup(func() { removeAll(t, foreign) })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockopt, AttachType: ebpf.AttachCGroupSetsockopt, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	d, err := os.Open(foreign)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(d.Fd()), Program: prog, Attach: ebpf.AttachCGroupSetsockopt}); err != nil {
		t.Fatal(err)
	}
	var told []string
	b := n.binderWith(t, cgroup.Config{Ways: []bind.Way{bind.WayBPF}, Warn: func(s string) { told = append(told, s) }})
	apply(t, b, bound(p.target(below), red), bound(p.target(other), green))
	if len(guards(t, below)) != 0 || len(guards(t, other)) != 1 {
		t.Errorf("programs %q below the other one, %q elsewhere", guards(t, below), guards(t, other))
	}
	want := "cgroup " + strings.TrimPrefix(p.target(below), "cgroup:") + ": root may send past the queues"
	if len(told) != 1 || !strings.HasPrefix(told[0], want) {
		t.Errorf("told %q, want one that begins with %q", told, want)
	}
}

// BenchmarkSetsockopt is what the program costs a process of a bound cgroup for
// each option that it sets.
func BenchmarkSetsockopt(b *testing.B) {
	require(b, bind.WayBPF)
	for _, tt := range []string{"without", "with"} {
		b.Run(tt, func(b *testing.B) {
			n := newNetwork(b)
			p := newPlace(b, bind.WayBPF)
			dir := sub(b, p.dir, "a")
			b.Cleanup(func() { remove(b, dir) })
			binder := n.binder(b, bind.WayBPF)
			apply(b, binder, bound(p.target(dir), red))
			if tt == "without" {
				detach(b, dir)
			}
			// the socket's cgroup counts, which is that of its birth
			enter := func(d string) {
				if err := os.WriteFile(d+"/cgroup.procs", []byte("0"), 0); err != nil {
					b.Fatal(err)
				}
			}
			enter(dir)
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
			enter(p.mount)
			if err != nil {
				b.Fatal(err)
			}
			defer unix.Close(fd)
			for b.Loop() {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 65536); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
