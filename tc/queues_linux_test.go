package tc_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// What waits behind four TCP connections in a branch of 10mbit, in virtual time:
// the queues that hold themselves short do, and all of them use the whole rate.
func TestVirtualQueues(t *testing.T) {
	if !vm.Inside() {
		t.Parallel()
		vm.Run(t, vm.VirtualTime(), vm.V2, "", "-test.run=^TestVirtualQueues$")
		return
	}
	const ms = time.Millisecond
	for _, tt := range []struct {
		kind     string
		params   string
		shortest time.Duration // of the median of a packet of another flow
		longest  time.Duration
	}{
		{"pfifo_head_drop", "limit=100", 100 * ms, time.Second}, // does not
		{"codel", "", 3 * ms, 25 * ms},
		{"codel", `target="20ms"`, 20 * ms, 80 * ms},
		{"pie", "", ms, 25 * ms},
		{"pie", `target="50ms"`, 20 * ms, 80 * ms},
		{"fq_pie", "", 0, 10 * ms},
		{"sfq", `limit=500 redflowlimit="60kb"`, 0, 20 * ms},
		// By default a flow is heavy from 128 kB in 40 ms on: 25mbit. Four that share
		// 10mbit are not, unless they start with such a burst.
		{"hhf", `admit_bytes="4kb"`, 0, 50 * ms},
		{"red", `min="10kb" max="30kb"`, 8 * ms, 40 * ms}, // 10 kB are 8 ms
	} {
		t.Run(tt.kind+" "+tt.params, func(t *testing.T) {
			b, p := veth(t)
			x := leaf("x", 10*hierarchy.Mbit, tt.kind, strings.Fields(tt.params)...)
			x.Ceil = hierarchy.Absolute(10 * hierarchy.Mbit)
			tree := b.tree(100*hierarchy.Mbit, x)
			b.apply(tree)
			id := tree.Find("eth0/x").ID
			sink, err := lab.NewSink(t.Context(), p.Far, 9)
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			echo, err := lab.NewEcho(t.Context(), p.Far, 10)
			if err != nil {
				t.Fatal(err)
			}
			defer echo.Close()
			load, err := lab.Start(t.Context(), lab.Traffic{NetNS: p.Near, Protocol: "tcp", To: netip.AddrPortFrom(p.Far4, 9), Flows: 4, Control: into(id)})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second) // until they have settled
			for _, wrong := range again(func(times int) (wrong []string) {
				before := sink.Count(9)
				l, err := lab.Measure(t.Context(), lab.Probe{NetNS: p.Near, To: netip.AddrPortFrom(p.Far4, 10), Count: 500 * times, Interval: 10 * time.Millisecond, Control: into(id)})
				if err != nil {
					t.Fatal(err)
				}
				rate := sink.Count(9).WireRate(before)
				t.Logf("median %v, 99 %% %v, %d of %d lost, %v", l.There.P50, l.There.P99, l.Lost, l.Sent, rate)
				if l.There.P50 < tt.shortest || l.There.P50 > tt.longest {
					wrong = append(wrong, fmt.Sprintf("median %v, want %v to %v", l.There.P50, tt.shortest, tt.longest))
				}
				if rate < 9500*hierarchy.Kbit {
					wrong = append(wrong, fmt.Sprintf("the connections got %v", rate))
				}
				return wrong
			}, func(wrong []string) bool { return len(wrong) > 0 }) {
				t.Error(wrong)
			}
			if err := load.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}
