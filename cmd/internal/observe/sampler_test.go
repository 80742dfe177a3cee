package observe

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
)

// TestFill: what waits, was dropped and marked is summed up where others are within, a share of
// borrowed packets is one of all, counters wrap around, a class that was made anew or is seen for
// the first time has no rate, and a queue that was made anew has dropped nothing.
func TestFill(t *testing.T) {
	began := time.Now()
	tree := []LiveBranch{
		{ID: 1, Path: "e"},
		{ID: 2, Path: "e/a", Depth: 1},
		{ID: 3, Path: "e/a/x", Depth: 2, Leaf: true},
		{ID: 4, Path: "e/a/y", Depth: 2, Leaf: true},
		{ID: 5, Path: "e/anew", Depth: 1, Leaf: true},
		{ID: 6, Path: "e/fresh", Depth: 1, Leaf: true},
		{ID: 7, Path: "e/fresh queue", Depth: 1, Leaf: true},
	}
	class := func(bytes, packets uint64, waits, lends, borrows uint32) tc.ClassStats {
		return tc.ClassStats{Counters: tc.Counters{Bytes: bytes, Packets: packets, Backlog: waits, QLen: waits / 100}, Lends: lends, Borrows: borrows}
	}
	was := [2]tally{{at: began,
		classes: map[hierarchy.ClassID]tc.ClassStats{1: class(1000, 10, 0, 5, 0), 2: class(1000, 10, 0, 0, 5), 3: class(500, 5, 0, 5, 0), 4: class(500, 5, 0, ^uint32(0), 0), 5: class(99, 9, 0, 0, 0), 7: class(10, 1, 0, 1, 0)},
	}}
	now := [2]tally{{at: began.Add(2 * time.Second),
		classes: map[hierarchy.ClassID]tc.ClassStats{1: class(5000, 50, 0, 8, 0), 2: class(5000, 50, 0, 0, 8), 3: class(2500, 25, 300, 12, 3), 4: class(2500, 25, 200, 9, 0), 5: class(10, 1, 0, 1, 0), 6: class(10, 1, 0, 1, 0), 7: class(10, 1, 0, 1, 0)},
		queues: [2]queues{
			{began, map[hierarchy.ClassID]told{3: {7, 10}, 4: {^uint32(0), 0}, 5: {1, 0}, 7: {3, 9}}},
			{began.Add(2 * time.Second), map[hierarchy.ClassID]told{3: {9, 16}, 4: {1, 2}, 5: {}, 6: {}, 7: {}}},
		},
	}}
	pace := func(b hierarchy.Bandwidth, packets, drops, marks, borrowed float64) *Pace {
		return &Pace{b, packets, drops, marks, borrowed}
	}
	want := []Passing{
		{Bytes: 5000, Packets: 50, Drops: 10, Marks: 18, Backlog: 500, Queue: 5, Since: pace(16000, 20, 2, 4, 0)},
		{Bytes: 5000, Packets: 50, Drops: 10, Marks: 18, Backlog: 500, Queue: 5, Since: pace(16000, 20, 2, 4, 0.15)},
		{Bytes: 2500, Packets: 25, Drops: 9, Marks: 16, Backlog: 300, Queue: 3, Since: pace(8000, 10, 1, 3, 0.3)},
		{Bytes: 2500, Packets: 25, Drops: 1, Marks: 2, Backlog: 200, Queue: 2, Since: pace(8000, 10, 1, 1, 0)},
		{Bytes: 10, Packets: 1},
		{Bytes: 10, Packets: 1},
		{Bytes: 10, Packets: 1, Since: pace(0, 0, 0, 0, 0)},
	}
	fill(tree, was, now)
	for i, b := range tree {
		if d := cmp.Diff(want[i], b.Sends); d != "" {
			t.Errorf("%s (-want +got):\n%s", b.Path, d)
		}
		if d := cmp.Diff(Passing{}, b.Receives); d != "" {
			t.Errorf("%s receives (-want +got):\n%s", b.Path, d)
		}
	}
}

func TestDelay(t *testing.T) {
	for want, p := range map[time.Duration]Passing{
		0:                      {Limits: Limits{Rate: 8000}},
		time.Second:            {Limits: Limits{Rate: 8000}, Backlog: 1000},
		100 * time.Millisecond: {Limits: Limits{Rate: 8000}, Backlog: 1000, Since: &Pace{Bandwidth: 80000}},
		2 * time.Second:        {Limits: Limits{Rate: 4000}, Backlog: 1000, Since: &Pace{}},
	} {
		if got := p.Delay(); got != want {
			t.Errorf("%+v waits %v, not %v", p, got, want)
		}
	}
}
