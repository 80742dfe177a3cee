package tc_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVirtualMarks holds what leaf queues count as marked against what arrives with a mark, of
// datagrams that allow it, twice what the branch lets through, in virtual time.
func TestVirtualMarks(t *testing.T) {
	if !vm.Inside() {
		t.Parallel()
		vm.Run(t, vm.VirtualTime(), vm.V2, "", "-test.run=^TestVirtualMarks$")
		return
	}
	for _, tt := range []struct {
		kind, params string
		flows        int
	}{
		{"codel", "ecn=true", 1},
		{"codel", `ecn=false ce_threshold="1ms"`, 1},
		{"fq_codel", "ecn=true", 1},
		{"pie", "ecn=true", 1},
		{"fq_pie", "ecn=true", 1},
		{"red", "ecn=true", 1},
		{"choke", "ecn=true", 50}, // it drops those of a flow that has most of what waits,
		{"sfb", "", 1},
		{"fq", `ce_threshold="1ms"`, 1},
		{"cake", "", 1},
		{"bfifo", "", 1}, // marks nothing
	} {
		t.Run(strings.TrimSpace(tt.kind+" "+tt.params), func(t *testing.T) {
			b, p := veth(t)
			x := leaf("x", 4*hierarchy.Mbit, tt.kind, strings.Fields(tt.params)...)
			x.Ceil = hierarchy.Absolute(4 * hierarchy.Mbit)
			tree := b.tree(100*hierarchy.Mbit, x)
			b.apply(tree)
			var far int
			near := make([]int, tt.flows)
			err := p.Far.Do(func() (err error) {
				far, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(far)
			const ect0, ce, size = 2, 3, 1000
			err = errors.Join(
				unix.SetsockoptInt(far, unix.IPPROTO_IP, unix.IP_RECVTOS, 1),
				unix.SetsockoptInt(far, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
				unix.Bind(far, &unix.SockaddrInet4{Port: 9}),
			)
			for i := range near {
				err = errors.Join(err, p.Near.Do(func() (err error) {
					near[i], err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
					return err
				}))
				defer unix.Close(near[i])
				err = errors.Join(err,
					unix.SetsockoptInt(near[i], unix.IPPROTO_IP, unix.IP_TOS, ect0),
					unix.SetsockoptInt(near[i], unix.SOL_SOCKET, unix.SO_PRIORITY, int(tree.Find("eth0/x").ID)),
					unix.Connect(near[i], &unix.SockaddrInet4{Port: 9, Addr: p.Far4.As4()}),
				)
			}
			if err != nil {
				t.Fatal(err)
			}
			arrived, marked, l := 0, uint64(0), tc.LeafStats{}
			// pie marks hardly any before it drops, and that by lot.
			for round := 0; round < 10 && marked == 0 && (round == 0 || tt.kind != "bfifo"); round++ {
				for i := range 3000 {
					if _, err := unix.Write(near[i%len(near)], make([]byte, size)); err != nil && err != unix.ENOBUFS {
						t.Fatal(err)
					}
					time.Sleep(time.Millisecond)
				}
				time.Sleep(2 * time.Second) // until the queue is empty
				for control := make([]byte, 64); ; arrived++ {
					_, n, _, _, err := unix.Recvmsg(far, make([]byte, size), control, 0)
					if err == unix.EAGAIN {
						break
					}
					all, e := unix.ParseSocketControlMessage(control[:n])
					if err != nil || e != nil || len(all) != 1 || len(all[0].Data) < 1 {
						t.Fatal(err, e, all)
					}
					if all[0].Data[0]&3 == ce {
						marked++
					}
				}
				stats, err := b.LeafStats()
				if err != nil {
					t.Fatal(err)
				}
				l = stats[slices.IndexFunc(stats, func(l tc.LeafStats) bool { return l.Class == tree.Find("eth0/x").ID })]
				t.Logf("%d arrived, %d marked; %d dropped, %d counted as marked", arrived, marked, l.Drops, l.Marks)
			}
			most := marked
			if tt.kind == "red" || tt.kind == "choke" { // which may drop what they have marked
				most += uint64(l.Drops)
			}
			if l.Marks < marked || l.Marks > most || (marked == 0) != (tt.kind == "bfifo") {
				t.Errorf("%d marked arrived, and %d are counted", marked, l.Marks)
			}
		})
	}
}
