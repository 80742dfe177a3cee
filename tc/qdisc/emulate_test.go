//go:build linux

package qdisc

import (
	"testing"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/emulate"
)

// Every known link is a leaf that can be made, and what it says of the leaf is kept.
func TestEmulate(t *testing.T) {
	kinds := Kinds()
	for _, p := range emulate.Presets() {
		spec := hierarchy.Spec{Interface: "eth0", BranchSpec: hierarchy.BranchSpec{
			Rate: hierarchy.Absolute(hierarchy.Gbit), Ingress: &hierarchy.BranchSpec{Rate: hierarchy.Absolute(hierarchy.Gbit)},
			Children: []*hierarchy.BranchSpec{{
				Name: p.Name, Rate: hierarchy.Absolute(p.Link.Up), Ceil: hierarchy.Absolute(p.Link.Up), Qdisc: p.Link.Leaf(hierarchy.Send),
				Ingress: &hierarchy.BranchSpec{Rate: hierarchy.Absolute(p.Link.Down), Ceil: hierarchy.Absolute(p.Link.Down), Qdisc: p.Link.Leaf(hierarchy.Receive)},
			}},
		}}
		tree, problems := hierarchy.Resolve(&spec, kinds)
		for _, x := range problems {
			t.Errorf("%s: %s: %s", x.Path, x.Key, x.Text)
		}
		if tree == nil {
			continue
		}
		for _, tree := range []*hierarchy.Tree{tree, tree.Ingress} {
			q := tree.Find(hierarchy.Path("eth0").Join(p.Name)).Qdisc
			settled, err := netem.settle(q, place)
			if err != nil {
				t.Errorf("%s: %v", p.Name, err)
			}
			got := hierarchy.Qdisc{Kind: q.Kind, Params: settled}
			for name, want := range map[string]uint64{"delay": uint64(p.Link.Delay), "jitter": uint64(p.Link.Jitter), "loss": p.Link.Loss} {
				if v, _ := got.Get(name); v != want {
					t.Errorf("%s of %s is %d, want %d", name, p.Name, v, want)
				}
			}
			limit, _ := q.Get("limit")
			if v, _ := got.Get("limit"); v != limit || limit < 64 {
				t.Errorf("limit of %s is %d, want %d", p.Name, v, limit)
			}
		}
	}
	// The bounds of what is given by hand are netem's.
	for _, name := range []string{"delay", "jitter"} {
		most := netem.Param(name).Max
		var l emulate.Link
		if err := l.Set(name, time.Duration(most).String()); err != nil {
			t.Error(err)
		}
		if l.Set(name, time.Duration(most+1).String()) == nil {
			t.Errorf("%s may be more than netem's", name)
		}
	}
}
