package tc_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/tctest"
)

// chance makes policies' parameters, the same ones each time.
type chance struct{ *rand.Rand }

// value is one that the parameter accepts by itself, often at the edge of what it
// does.
func (c chance) value(p *hierarchy.Param) uint64 {
	low, high := p.Min, p.Max
	switch {
	case p.Type == hierarchy.Signed:
		return low + c.Uint64N(high-low+1)
	case p.Type == hierarchy.Numbers:
		n := make([]uint64, p.Len)
		for i := range n {
			n[i] = low + c.Uint64N(high-low+1)
		}
		return hierarchy.Pack(n)
	case high == 0: // of type Percent
		high = hierarchy.Whole
	}
	switch c.IntN(6) {
	case 0:
		return low
	case 1:
		return high
	}
	least := math.Log(float64(max(low, 1)))
	x := math.Exp(least + c.Float64()*(math.Log(float64(high))-least))
	return min(max(uint64(x), low), high)
}

// params are what a policy may say of a kind, little or much.
func (c chance) params(k *hierarchy.Kind, without map[string]bool) (texts []string) {
	q := hierarchy.Qdisc{Kind: k.Name}
	most := c.IntN(len(k.Params) + 1)
	for tries := 4 * len(k.Params); len(q.Params) < most || k.Verify != nil && k.Verify(q) != nil; tries-- {
		p := k.Params[c.IntN(len(k.Params))]
		switch i := slices.IndexFunc(q.Params, func(s hierarchy.Setting) bool { return s.Name == p.Name }); {
		case without[k.Name+" "+p.Name]:
		case i >= 0:
			q.Params = slices.Delete(q.Params, i, i+1)
		default:
			q.Params = append(q.Params, hierarchy.Setting{Name: p.Name, Value: c.value(&p)})
		}
		if tries == 0 {
			return c.params(k, without)
		}
	}
	for _, s := range q.Params {
		p := k.Param(s.Name)
		format := "%s=%q"
		if p.Type == hierarchy.Count || p.Type == hierarchy.Signed || p.Type == hierarchy.Flag {
			format = "%s=%s"
		}
		texts = append(texts, fmt.Sprintf(format, p.Name, p.Format(s.Value)))
	}
	return texts
}

// Of whatever a policy may say of a kind, the kernel keeps all and shows it again,
// or it is refused before anything is done.
func TestKernelKindChance(t *testing.T) {
	sets := 200
	if !virtualTime() { // where the processor's time is not that of the test
		sets = 40
	}
	without := map[string]bool{}
	for name, since := range map[string]string{"fq priomap": "6.7", "fq weights": "6.7", "fq offload_horizon": "6.14", "netem seed": "6.6"} {
		without[name] = !kernelSince(t, since)
	}
	for _, k := range qdisc.Kinds() {
		if !(kindCase{kind: k.Name}).here(t) {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			tctest.RequireQdisc(t, k.Name)
			b, p := veth(t)
			c := chance{rand.New(rand.NewPCG(1, 2))}
			refused, bad := 0, 0
			for range sets {
				set := c.params(&k, without)
				x := leaf("x", hierarchy.Bandwidth(8000*math.Exp(c.Float64()*math.Log(4e7))), k.Name, set...)
				tree := resolve(t, hierarchy.Spec{Interface: b.Name, BranchSpec: hierarchy.BranchSpec{Rate: hierarchy.Absolute(400 * hierarchy.Gbit), Children: []*hierarchy.BranchSpec{x}}})
				if err := b.Settle(t.Context(), tree); err != nil {
					if refused++; !strings.HasPrefix(err.Error(), "eth0/x: qdisc "+k.Name+": ") {
						t.Errorf("%q: refused by %q", set, err)
					}
					continue
				}
				was := b.leafOf(tree.Find("eth0/x").ID)
				if _, err := b.Do(t.Context(), hierarchy.Diff(b.read(), tree.State()).Steps); err != nil {
					t.Errorf("%q from %v: %v", set, was, err)
					bad++
				} else if d := cmp.Diff(bare(tree.State()), bare(b.read())); d != "" {
					t.Errorf("%q from %v (-want +got)\n%s", set, was, d)
					bad++
				}
				if bad == 5 {
					t.Fatal("and so on")
				}
				b.send(p, tree.Find("eth0/x").ID, 3) // the next change finds some waiting
			}
			if refused > sets/2 {
				t.Errorf("%d of %d refused", refused, sets)
			}
		})
	}
}
