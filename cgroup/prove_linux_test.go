package cgroup_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/prove"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/tc/tctest"
)

// prove proves ways into classes, with ten packets each.
func (n *network) prove(t *testing.T, b *cgroup.Binder, in ...hierarchy.Bound) []prove.Proof {
	t.Helper()
	return n.proveWith(t, b, func(*prove.Config) {}, in...)
}

func (n *network) proveWith(t *testing.T, b *cgroup.Binder, change func(*prove.Config), in ...hierarchy.Bound) []prove.Proof {
	t.Helper()
	cfg, err := b.Proving()
	if err != nil {
		t.Fatal(err)
	}
	change(&cfg)
	cfg.Packets = 10
	cfg.Sender = func() *exec.Cmd { return tctest.Command(t, "sendProof") }
	cfg.Counters = func() (map[hierarchy.ClassID]uint64, error) {
		stats, err := n.device.Stats()
		m := map[hierarchy.ClassID]uint64{}
		for _, c := range stats {
			if c.Class != hierarchy.ID(hierarchy.RootMinor) {
				m[c.Class] = c.Packets
			}
		}
		return m, err
	}
	all, err := prove.Run(t.Context(), in, cfg)
	if err != nil || len(all) != len(in) {
		t.Fatalf("%d proofs of %d ways in: %v", len(all), len(in), err)
	}
	return all
}

// landed holds that a proof's packets all have one class.
func landed(t *testing.T, p prove.Proof, class hierarchy.ClassID) {
	t.Helper()
	if diff := cmp.Diff(map[hierarchy.ClassID]int{class: 10}, p.Landed); diff != "" || p.Sent != 10 || p.Err != nil || p.AtLeast {
		t.Errorf("%s: sent %d, error %v, at least %v, packets a class (-want +got):\n%s", p.Bound.Target, p.Sent, p.Err, p.AtLeast, diff)
	}
}

// left are cgroups below a directory that Prove made.
func left(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(filepath.Base(p), "_prove-") {
			all = append(all, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestKernelProve: packets go through each way in and are counted where they land,
// also where that is not what was said; nothing stays behind, of a run that was killed
// either, and the class counters say the same.
func TestKernelProve(t *testing.T) {
	for _, way := range ways(t) {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			if way == bind.WayClsCgroup && !hasCgroupFilter(t, n) {
				return
			}
			p := newPlace(t, way)
			a, deep := sub(t, p.dir, "a"), sub(t, p.dir, "a", "deep")
			sub(t, a, "_prove-1")
			b := n.binder(t, way)
			in := []hierarchy.Bound{bound(p.target(a), red), bound(p.target(deep), blue)}
			if v2(way) {
				in = append(in, bound("uid:4714", green))
			}
			apply(t, b, in...)
			in = append(in, hierarchy.Bound{Class: rest})
			var got []prove.Proof
			gained := n.during(t, func() { got = n.prove(t, b, in...) })
			want := counts{}
			for i, x := range in {
				landed(t, got[i], x.Class)
				want[x.Class] = 10
			}
			if diff := cmp.Diff(want, gained); diff != "" {
				t.Errorf("packets a class (-want +got):\n%s", diff)
			}
			if l := left(t, p.dir); len(l) != 0 {
				t.Errorf("left behind: %v", l)
			}

			lie := n.prove(t, b, bound(p.target(a), green), bound(p.target(sub(t, p.dir, "free")), green))
			landed(t, lie[0], red)
			landed(t, lie[1], rest)
			if v2(way) {
				return
			}
			if got := n.prove(t, b, bound("cgroup:/no/such", red)); got[0].Sent != 0 || got[0].Err == nil {
				t.Errorf("of a cgroup that is not there: %+v", got)
			}
		})
	}
}

// TestKernelProveCgroups: a cgroup whose processes must be further down, one that takes
// no process, one that is frozen, and one that is gone.
func TestKernelProveCgroups(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	inner, threaded, frozen, gone := sub(t, p.dir, "inner"), sub(t, p.dir, "t", "threaded"), sub(t, p.dir, "frozen"), sub(t, p.dir, "gone")
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	controllers, err := os.ReadFile(inner + "/cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range strings.Fields(string(controllers)) {
		write(inner+"/cgroup.subtree_control", "+"+c)
	}
	write(threaded+"/cgroup.type", "threaded")
	t.Cleanup(func() { // its processes are its parent's, which nobody reads here
		if err := os.Remove(threaded); err != nil {
			t.Error(err)
		}
	})
	write(frozen+"/cgroup.freeze", "1")
	b := n.binder(t, bind.WayBPF)
	apply(t, b, bound(p.target(inner), red), bound(p.target(threaded), green), bound(p.target(frozen), blue), bound(p.target(gone), blue))
	in := []hierarchy.Bound{bound(p.target(threaded), green), bound(p.target(frozen), blue), bound(p.target(gone), blue), bound(p.target(inner), red)}
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	got := n.prove(t, b, in...)
	for i, why := range []string{"put a process into it: ", "is it frozen?", "it is gone"} {
		if got[i].Sent != 0 || got[i].Err == nil || !strings.Contains(got[i].Err.Error(), why) {
			t.Errorf("%s: sent %d, error %v, want %q", in[i].Target, got[i].Sent, got[i].Err, why)
		}
	}
	landed(t, got[3], red)
	if l := left(t, p.dir); len(l) != 0 {
		t.Errorf("left behind: %v", l)
	}
}

// TestKernelProveLink: what a bound interface brings in is sent at its other end, in
// another network namespace, and forwarded to a neighbour or the world.
func TestKernelProveLink(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	inner := n.routed(t, "veth1", 1)
	b := n.binder(t, bind.WayBPF)
	in := bound("link:veth1", red)
	apply(t, b, in)
	refused := func(in hierarchy.Bound, why string) {
		t.Helper()
		if got := n.prove(t, b, in)[0]; got.Sent != 0 || got.Err == nil || !strings.Contains(got.Err.Error(), why) {
			t.Errorf("%s: sent %d, error %v, want %q", in.Target, got.Sent, got.Err, why)
		}
	}
	n.start(t, n.Near, "").Do("udp %s:9 1", n.Far4) // which makes it a neighbour
	refused(in, "nobody can enter it")
	refused(bound("link:lo", red), "from outside of this machine")
	refused(bound("link:veth7", red), "no such interface")
	n.start(t, inner, "")
	landed(t, n.prove(t, b, in)[0], red)
	world := netip.MustParsePrefix("0.0.0.0/0")
	if err := n.Near.AddRoute(world, n.Far4, n.Dev); err != nil {
		t.Fatal(err)
	}
	if err := inner.AddRoute(world, netip.MustParseAddr("198.19.1.1"), "eth0"); err != nil {
		t.Fatal(err)
	}
	landed(t, n.prove(t, b, in)[0], red)
	apply(t, b)
	landed(t, n.prove(t, b, in)[0], rest)
}

// TestKernelProveMatched: what was sent is shown as it left, which tells where matches have
// it; and they are asked where a packet would go that is not sent, also when somebody has
// written into their tables.
func TestKernelProveMatched(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	a := sub(t, p.dir, "a")
	b := n.binder(t, bind.WayBPF)
	top := []hierarchy.ClassID{rest}
	all := []hierarchy.Matched{matched(t, green, []hierarchy.ClassID{red}, "to=239.0.0.0/8"), matched(t, blue, top, "dport=9 proto=udp", "mark=0x10/0xf0")}
	applyMatched(t, b, all, bound(p.target(a), red))
	got := n.prove(t, b, bound(p.target(a), red), hierarchy.Bound{Class: rest})
	for i, want := range []hierarchy.ClassID{green, blue} {
		landed(t, got[i], want)
		for _, s := range got[i].Seen {
			f := s.First
			if s.Packets != 10 || s.Class != want || f.From != n.Near4 || f.To != netip.MustParseAddr("239.255.7.31") || f.Proto != match.UDP || f.DPort != 9 || f.SPort == 0 ||
				f.FromMAC == (match.MAC{}) || f.ToMAC != (match.MAC{1, 0, 0x5e, 0x7f, 7, 0x1f}) || f.Received {
				t.Errorf("%d packets of %v: %+v", s.Packets, s.Class, f)
			}
		}
	}

	ask := func(m *match.Match, from, want hierarchy.ClassID) {
		t.Helper()
		packet, ok := m.Sample(false)
		got, err := b.Ask(&packet, from)
		if !ok || err != nil || got != want {
			t.Errorf("%v, of %v: %v, error %v, want %v", packet, from, got, err, want)
		}
	}
	ask(&all[0].Match[0], red, green)
	ask(&all[0].Match[0], rest, rest)
	ask(&all[1].Match[1], rest, blue)
	ask(&all[1].Match[1], red, red)
	n.tamper(t, "vif_v4")
	ask(&all[0].Match[0], red, red)
	landed(t, n.prove(t, b, bound(p.target(a), red))[0], red)
	apply(t, b)
	ask(&all[1].Match[1], rest, rest)
}

// tamper empties a map of the matches.
func (n *network) tamper(t *testing.T, name string) {
	t.Helper()
	id, err := n.hook.MatchProgram()
	if err != nil {
		t.Fatal(err)
	}
	m := programMap(t, id, name)
	defer m.Close()
	k := make([]byte, m.KeySize())
	for m.NextKey(nil, k) == nil {
		if err := m.Delete(k); err != nil {
			t.Fatal(err)
		}
	}
}

// programMap opens a map of a program.
func programMap(t *testing.T, id uint32, name string) *ebpf.Map {
	t.Helper()
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			t.Fatal(err)
		}
		if i, err := m.Info(); err == nil && i.Name == name {
			return m
		}
		m.Close()
	}
	t.Fatalf("there is no map %s", name)
	return nil
}

// came holds that all that a way in is asked to receive gets one class.
func came(t *testing.T, p prove.Proof, class hierarchy.ClassID, kinds int) {
	t.Helper()
	asked := 0
	for _, s := range p.Received {
		asked += s.Packets
		if s.Class != class {
			t.Errorf("%s: %d packets of %v, want %v: %+v", p.Bound.Target, s.Packets, s.Class, class, s.First)
		}
	}
	if asked != 10 || len(p.Received) != kinds {
		t.Errorf("%s: %d packets of %d kinds, want 10 of %d; %v", p.Bound.Target, asked, len(p.Received), kinds, p.NoAnswer)
	}
}

// TestKernelProveReceived: what each way in would receive is asked of the program at the hook,
// as an answer to what it has sent, and as what answers to nothing where sockets are looked
// for; what is forwarded, too.
func TestKernelProveReceived(t *testing.T) {
	for _, way := range ways(t) {
		if way == bind.WayClsCgroup {
			continue // nothing tells what is received apart
		}
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newReceiver(t)
			p := newPlace(t, way)
			a := sub(t, p.dir, "a")
			b := n.binder(t, way)
			in := []hierarchy.Bound{bound(p.target(a), red)}
			if v2(way) {
				in = append(in, bound("uid:4714", green))
			}
			if way == bind.WayBPF {
				n.start(t, n.routed(t, "veth1", 1), "")
				in = append(in, bound("link:veth1", blue))
			}
			n.apply(t, b, in...)
			in = append(in, hierarchy.Bound{Class: rest})
			kinds := 1
			if looks(t, way) {
				kinds++
			}
			n.start(t, n.Near, "").Do("udp %s:9 1", n.Far4) // which makes it a neighbour
			got := n.received(t, func() {
				for i, x := range n.prove(t, b, in...) {
					landed(t, x, in[i].Class)
					if x.NoAnswer != nil {
						t.Errorf("%s: %v", x.Bound.Target, x.NoAnswer)
					}
					want := kinds
					if x.Bound.Target.Kind == bind.TargetLink {
						want = 1
					}
					came(t, x, in[i].Class, want)
					if f := x.Received[0].First; f.From != n.Far4 || f.SPort != 9 || !f.Received {
						t.Errorf("%s: answered by %+v, want %s", x.Bound.Target, f, n.Far4)
					}
				}
			})
			for class := range got {
				if class != rest { // what the far end says of a port that nobody has
					t.Errorf("packets were received that nobody sent: %v", got)
				}
			}
			if l := left(t, p.dir); len(l) != 0 {
				t.Errorf("left behind: %v", l)
			}
			gone := n.proveWith(t, b, func(cfg *prove.Config) {
				real := cfg.Receive
				cfg.Receive = func(p *match.Packet) (hierarchy.ClassID, error) {
					if err := n.hook.DetachReceive(); err != nil {
						t.Fatal(err)
					}
					return real(p)
				}
			}, in[0])[0]
			landed(t, gone, red)
			came(t, gone, 0, kinds)
			if cfg, err := b.Proving(); err != nil || cfg.Receive != nil {
				t.Errorf("without a program something can be asked, error %v", err)
			}

			n.apply(t, b, in[:len(in)-1]...)
			n.forget(t)
			nobody := n.prove(t, b, in[0])[0]
			landed(t, nobody, red)
			if nobody.NoAnswer == nil || !strings.HasPrefix(nobody.NoAnswer.Error(), "nobody can be asked: ") {
				t.Errorf("with nobody to ask: %v", nobody.NoAnswer)
			}
			if kinds == 2 {
				came(t, nobody, red, 1)
			} else if nobody.Received != nil {
				t.Errorf("with nobody to ask or look for: %+v", nobody.Received)
			}
		})
	}
}

// forget has the near end know no neighbour.
func (n *network) forget(t *testing.T) {
	t.Helper()
	err := n.Near.Do(func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
		if err != nil {
			return err
		}
		defer c.Close()
		ae := netlink.NewAttributeEncoder()
		ae.Bytes(unix.NDA_DST, n.Far4.AsSlice())
		attrs, err := ae.Encode()
		if err != nil {
			return err
		}
		msg := make([]byte, unix.SizeofNdMsg)
		msg[0] = unix.AF_INET
		binary.NativeEndian.PutUint32(msg[4:], uint32(i.Index))
		_, err = c.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_DELNEIGH, Flags: netlink.Request | netlink.Acknowledge}, Data: append(msg, attrs...)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestKernelProveReceivedTable: a class that somebody writes into the table of flows is found.
// Where sockets are looked for, the program itself puts right what is a second old.
func TestKernelProveReceivedTable(t *testing.T) {
	require(t, bind.WayNetCls)
	n := newReceiver(t)
	p := newPlace(t, bind.WayNetCls)
	a := sub(t, p.dir, "a")
	b := n.binder(t, bind.WayNetCls)
	in := bound(p.target(a), red)
	n.apply(t, b, in)
	n.start(t, n.Near, "").Do("udp %s:9 1", n.Far4)
	got := n.proveWith(t, b, func(cfg *prove.Config) {
		real := cfg.Receive
		cfg.Receive = func(p *match.Packet) (hierarchy.ClassID, error) {
			n.reclass(t, red, green)
			return real(p)
		}
	}, in)[0]
	landed(t, got, red)
	came(t, got, green, 1)
	came(t, n.prove(t, b, in)[0], red, 1)
}

// reclass writes another class into the table of flows wherever one is.
func (n *network) reclass(t *testing.T, is, to hierarchy.ClassID) {
	t.Helper()
	note, _, err := n.hook.ReceivePrograms()
	if err != nil {
		t.Fatal(err)
	}
	table := programMap(t, note, "vif_flows")
	defer table.Close()
	k, v := make([]byte, table.KeySize()), make([]byte, table.ValueSize())
	const class = 8 // in struct vif_owner
	for it := table.Iterate(); it.Next(&k, &v); {
		if binary.NativeEndian.Uint32(v[class:]) == uint32(is) {
			binary.NativeEndian.PutUint32(v[class:], uint32(to))
			if err := table.Put(k, v); err != nil {
				t.Fatal(err)
			}
		}
	}
}
