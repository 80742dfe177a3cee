package observe

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
)

// What leaves count is what those above them count together, reason by reason.
func TestLatencySum(t *testing.T) {
	const root, web, api, rest = 1, 2, 3, 4
	leaf := func(id, above hierarchy.ClassID, packets, waiting, untimed uint64, drops ...LatencyDrop) LatencyBranch {
		b := LatencyBranch{id: id, above: above, Kind: "bfifo", Waiting: waiting, Untimed: untimed, Drops: drops}
		b.waits.Packets, b.waits.Total, b.waits.Longest = packets, time.Duration(packets), time.Duration(packets)
		return b
	}
	full, slow := LatencyDrop{"QDISC_DROP", "queue full", 7}, LatencyDrop{"NOT_SPECIFIED", "to slow senders down", 9}
	v := &Latency{Branches: []LatencyBranch{
		{id: root}, {id: web, above: root}, leaf(api, web, 10, 1, 2, full, slow), leaf(rest, root, 5, 3, 0, full),
	}}
	v.sum()
	type counts struct{ Packets, Waiting, Untimed, Dropped uint64 }
	var got []counts
	for _, b := range v.Branches {
		got = append(got, counts{b.Packets, b.Waiting, b.Untimed, b.Dropped()})
	}
	if d := cmp.Diff([]counts{{15, 4, 2, 23}, {10, 1, 2, 16}, {10, 1, 2, 16}, {5, 3, 0, 7}}, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	want := []LatencyDrop{{"QDISC_DROP", "queue full", 14}, slow}
	if d := cmp.Diff(want, v.Branches[0].Drops); d != "" {
		t.Errorf("drops of all (-want +got)\n%s", d)
	}
	if v.Branches[0].Longest != v.Branches[2].Longest {
		t.Errorf("the longest of all is %v, that of a leaf %v", v.Branches[0].Longest, v.Branches[2].Longest)
	}
}

// A reason says of some queues more than its name does, and none less.
func TestDropMeans(t *testing.T) {
	for _, tt := range []struct{ reason, kind, want string }{
		{"QDISC_DROP", "bfifo", "queue full"},
		{"QDISC_DROP", "sfq", "sfq did not keep it, and this kernel does not say why"},
		{"QDISC_OVERLIMIT", "fq_codel", "queue full"},
		{"QDISC_CONGESTED", "red", "to slow senders down"},
		{"NOT_SPECIFIED", "fq_codel", "to slow senders down"},
		{"NOT_SPECIFIED", "sfq", "this kernel does not say why"},
		{"", "bfifo", "this kernel does not say why"},
		{"QDISC_BURST_DROP", "fq", "qdisc burst drop"},
		{"0x30001", "fq", "0x30001"},
	} {
		if got := dropMeans(tt.reason, tt.kind); got != tt.want {
			t.Errorf("%s of %s: %q, want %q", tt.reason, tt.kind, got, tt.want)
		}
	}
}
