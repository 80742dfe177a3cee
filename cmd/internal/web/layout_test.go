package web

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/hierarchy"
)

// remedied is an error with a way on.
type remedied struct{ error }

func (remedied) Remedy() string { return "do something" }

// passing is what may go through a branch, and what does.
func passing(ceil, does hierarchy.Bandwidth, backlog uint64) observe.Passing {
	return observe.Passing{Limits: observe.Limits{Rate: ceil / 2, Ceil: ceil}, Backlog: backlog, Since: &observe.Pace{Bandwidth: does, Drops: float64(backlog)}}
}

func TestLaidOut(t *testing.T) {
	r := rows{known: map[key]*known{}}
	l, uses := laidOut([]*observe.Live{
		{Interface: "eth0", Policy: "p.toml", Receives: true, Branches: []observe.LiveBranch{
			{Path: "eth0", Sends: passing(100, 0, 0), Receives: passing(90, 0, 0)},
			{Path: "eth0/a", Depth: 1, Sends: passing(50, 8, 0), Receives: passing(120, 0, 0)},
			{Path: "eth0/a/b", Depth: 2, Leaf: true, Limit: "user:x", Sends: passing(80, 8, 2), Receives: passing(80, 0, 0)},
			{Path: "eth0/c", Depth: 1, Leaf: true, Sends: passing(70, 0, 0), Receives: observe.Passing{Limits: observe.Limits{Ceil: 10}}},
		}},
		{Interface: "eth1", Absent: true, Err: remedied{errors.New("it is not there")}},
	}, &r, 1)
	row := func(id uint32, ceil, reach uint64, by string) row {
		return row{ID: id, Rate: ceil / 2, Ceil: ceil, Reach: reach, By: by}
	}
	want := layout{[]face{
		{Name: "eth0", Policy: "p.toml", Branches: []branch{
			{Path: "eth0", Sends: row(0, 100, 100, "eth0"), Receives: row(1, 90, 90, "eth0")},
			{Path: "eth0/a", Depth: 1, Sends: row(2, 50, 50, "eth0/a"), Receives: row(3, 120, 90, "eth0")},
			{Path: "eth0/a/b", Depth: 2, Leaf: true, Limit: "user:x", Sends: row(4, 80, 50, "eth0/a"), Receives: row(5, 80, 80, "eth0/a/b")},
			{Path: "eth0/c", Depth: 1, Leaf: true, Sends: row(6, 70, 70, "eth0/c"), Receives: row(7, 10, 10, "eth0/c")},
		}},
		{Name: "eth1", Problem: "it is not there", Remedy: "do something", Branches: []branch{}},
	}}
	want.Interfaces[0].Branches[3].Receives.Rate = 0
	if d := cmp.Diff(want, l); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	busy := []use{{row: 2, bits: 8}, {row: 4, bits: 8, drops: 2, backlog: 2, delay: 2_000_000}}
	if d := cmp.Diff(busy, uses, cmp.AllowUnexported(use{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
