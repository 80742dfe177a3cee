package tc_test

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// priorities stands for a classifier: sockets that have the class of a branch for their
// priority. It binds the users with the numbers of the sockets.
type priorities struct {
	fds   []int
	bound []hierarchy.Bound
}

func (p *priorities) Port() hierarchy.Port { return hierarchy.Port{} }

func (p *priorities) Read(_ context.Context, s *hierarchy.State) error {
	s.Bound = slices.Clone(p.bound)
	return nil
}

func (p *priorities) Do(_ context.Context, steps []hierarchy.Step) (int, error) {
	for i, s := range steps {
		b, ok := s.New.(*hierarchy.Bound)
		if !ok {
			return i, fmt.Errorf("a step that binds nothing: %v", s)
		}
		if err := into(b.Class)(p.fds[b.Target.ID]); err != nil {
			return i, err
		}
		p.bound = slices.DeleteFunc(p.bound, func(o hierarchy.Bound) bool { return o.Target == b.Target })
		p.bound = append(p.bound, *b)
	}
	return len(steps), nil
}

// scatter draws an interface: its leaves share what there is, and their queues hold more than
// is ever sent here.
func scatter(rnd *rand.Rand, dev string, kinds []string, old []hierarchy.Path) hierarchy.Spec {
	size := func(odds, low int) hierarchy.Size {
		if rnd.IntN(odds) > 0 {
			return 0
		}
		return hierarchy.Size(low + rnd.IntN(low))
	}
	var below func(up hierarchy.Path, depth int) []*hierarchy.BranchSpec
	below = func(up hierarchy.Path, depth int) (all []*hierarchy.BranchSpec) {
		for _, i := range rnd.Perm(4)[:1+rnd.IntN(3)] {
			b := &hierarchy.BranchSpec{Name: string(rune('a' + i)), Burst: size(6, 1600), CBurst: size(6, 1600), Quantum: size(6, 1600)}
			if rnd.IntN(3) == 0 {
				b.Ceil, _ = hierarchy.ParseAmount(fmt.Sprintf("%d%%", 50+rnd.IntN(50)))
			}
			if rnd.IntN(3) == 0 {
				prio := uint8(rnd.IntN(8))
				b.Prio = &prio
			}
			if len(old) > 0 && rnd.IntN(4) == 0 {
				b.RenamedFrom = string(old[rnd.IntN(len(old))])
			}
			if depth < 3 && rnd.IntN(3) == 0 {
				b.Children = below(up.Join(b.Name), depth+1)
			} else {
				b.Qdisc = &hierarchy.RawQdisc{Kind: kinds[len(up)%len(kinds)], Params: []hierarchy.RawParam{{Name: "limit", Text: strconv.Itoa(1000 + rnd.IntN(1000))}}}
			}
			all = append(all, b)
		}
		return all
	}
	s := hierarchy.Spec{Interface: dev}
	s.Rate = hierarchy.Absolute(hierarchy.Bandwidth(5+rnd.IntN(15)) * hierarchy.Mbit)
	s.Children = below(hierarchy.Path(dev), 1)
	return s
}

// written is a specification in full.
func written(s hierarchy.Spec) string {
	b, err := json.Marshal(s)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestVirtualPairs holds for trees drawn by lot, each made of the one before while packets
// wait in its queues and others are sent, in virtual time: the kernel has what was asked for,
// nothing is left to do, and no packet is lost or goes to the rest, which nobody sends to.
func TestVirtualPairs(t *testing.T) {
	if !vm.Inside() {
		t.Parallel()
		// The seed goes along as that of the order of tests, of which there is one.
		vm.Run(t, vm.VirtualTime(), vm.V2, "", "-test.run=^TestVirtualPairs$", "-test.shuffle="+cmp.Or(os.Getenv("VIFSHAPE_SEED"), "1"))
		return
	}
	seed, err := strconv.ParseUint(flag.Lookup("test.shuffle").Value.String(), 10, 64)
	if err != nil {
		seed = 1
	}
	const pairs, senders, most, size = 2000, 4, 60, 200
	rnd := rand.New(rand.NewPCG(seed, 0))
	b, pair := veth(t)
	from := &priorities{}
	var counters []counter
	for s := range senders {
		counters = append(counters, newCounter(t, pair.Far, uint16(firstUDP+s), size))
		err := pair.Near.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			from.fds = append(from.fds, fd)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for s, c := range counters {
			unix.Close(c.fd)
			unix.Close(from.fds[s])
		}
	})
	arrived := func() (n uint64) {
		for _, c := range counters {
			n += c.count(t).Packets
		}
		return n
	}
	var mu sync.Mutex
	sent := uint64(0)
	send := func(s, n int) {
		mu.Lock()
		defer mu.Unlock()
		for range n {
			if sent-arrived() >= most { // what waits in a class that goes has two seconds
				return
			}
			if err := unix.Sendto(from.fds[s], make([]byte, size), 0, &unix.SockaddrInet4{Port: firstUDP + s, Addr: pair.Far4.As4()}); err != nil {
				t.Errorf("sender %d: %v", s, err)
			}
			sent++
		}
	}
	kernel := hierarchy.Kernel{Device: b.Name, Parts: []hierarchy.Part{b.Device, b.Receiver(), from}}
	var ids hierarchy.IDs
	var old []hierarchy.Path
	var last hierarchy.Spec
	waited := 0
	kinds := []string{"pfifo", "pfifo_head_drop"}
	step := func() error {
		var spec hierarchy.Spec
		var tree *hierarchy.Tree
		for tree == nil { // two may be renamed from one
			spec = scatter(rnd, b.Name, kinds, old)
			tree, _ = hierarchy.Resolve(&spec, qdisc.Kinds())
		}
		next, err := ids.Assign(tree)
		if err == nil {
			err = b.Settle(t.Context(), tree)
		}
		if err != nil {
			return err
		}
		var leaves []*hierarchy.Branch
		old = nil
		for x := range tree.All() {
			if x != tree.Root && x.Path.Base() != hierarchy.RestName {
				old = append(old, x.Path)
				if x.Leaf() {
					leaves = append(leaves, x)
				}
			}
		}
		want := tree.State()
		for s := range senders {
			to := leaves[rnd.IntN(len(leaves))]
			want.Bound = append(want.Bound, hierarchy.Bound{Target: bind.ToUser(uint32(s)), Class: to.ID})
		}
		before, err := kernel.Read(t.Context())
		if err != nil {
			return err
		}
		if mu.Lock(); sent > arrived() {
			waited++
		}
		mu.Unlock()
		if err := kernel.Apply(t.Context(), before, want, hierarchy.Diff(before, want)); err != nil {
			return fmt.Errorf("%w\n%s\nover %s", err, written(spec), written(last))
		}
		now, err := kernel.Read(t.Context())
		if left := hierarchy.Diff(now, want); err != nil || !left.Empty() {
			return fmt.Errorf("then there is still to do: %v, %v\n%s\nover %s", left.Steps, err, written(spec), written(last))
		}
		ids, last = next, spec
		return nil
	}
	if err := step(); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for s := 0; ; s = (s + 1) % senders {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				send(s, 1)
			}
		}
	})
	for i := range pairs {
		for s := range senders {
			send(s, 1+rnd.IntN(20))
		}
		if err := step(); err != nil {
			t.Errorf("seed %d, pair %d: %v", seed, i, err)
			break
		}
		time.Sleep(time.Duration(rnd.IntN(10)) * time.Millisecond)
	}
	close(stop)
	wait.Wait()
	for deadline := time.Now().Add(10 * time.Second); arrived() < sent && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if n := arrived(); n != sent {
		t.Errorf("seed %d: %d of %d packets arrived", seed, n, sent)
	}
	for _, c := range tctest.TCClasses(t, pair.Near, b.Name) {
		if c.ID == hierarchy.ID(hierarchy.RestMinor).String() && c.Packets > 2 { // who looks for a neighbour is nobody
			t.Errorf("seed %d: %d packets went to the rest", seed, c.Packets)
		}
	}
	t.Logf("seed %d: %d pairs under %d packets, some of them waiting at %d", seed, pairs, sent, waited)
	if waited < pairs/2 {
		t.Error("that is not what was to be tried")
	}
}
