package hierarchy_test

import (
	"fmt"
	"testing"

	. "github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// tenThousand is a policy of 10,000 branches: 100 tenants with a rate, each with
// 99 leaves, half of which have one too.
func tenThousand() *Spec {
	s := eth0(rate("100gbit"))
	for i := range 100 {
		tenant := &BranchSpec{Name: fmt.Sprintf("tenant%d", i), Rate: Absolute(900 * Mbit)}
		for j := range 99 {
			leaf := &BranchSpec{Name: fmt.Sprintf("leaf%d", j)}
			if j%2 == 0 {
				leaf.Rate = Absolute(9 * Mbit)
			}
			leaf.Bind = []bind.Binding{{Kind: bind.Unit, Name: fmt.Sprintf("u%d-%d.service", i, j)}}
			tenant.Children = append(tenant.Children, leaf)
		}
		s.Children = append(s.Children, tenant)
	}
	return s
}

func BenchmarkResolve10k(b *testing.B) {
	s := tenThousand()
	b.ReportAllocs()
	for b.Loop() {
		if tree, p := Resolve(s, kinds); tree == nil {
			b.Fatal(p)
		}
	}
}

func BenchmarkAssign10k(b *testing.B) {
	tree, _ := Resolve(tenThousand(), kinds)
	kept := assign(b, IDs{}, tree)
	for _, r := range []struct {
		name string
		ids  IDs
	}{{"new", IDs{}}, {"kept", kept}} {
		b.Run(r.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.ids.Assign(tree); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkState10k(b *testing.B) {
	tree, _ := Resolve(tenThousand(), kinds)
	assign(b, IDs{}, tree)
	b.ReportAllocs()
	for b.Loop() {
		if len(tree.State().Ports[0].Classes) != 10_002 {
			b.Fatal("not 10,002 classes")
		}
	}
}

func BenchmarkDiff10k(b *testing.B) {
	tree, _ := Resolve(tenThousand(), kinds)
	assign(b, IDs{}, tree)
	one := stateOf(tree)
	other := stateOf(tree)
	other.Ports[0].Classes[5000].Rate -= 8
	for _, r := range []struct {
		name     string
		old, new State
		steps    int
	}{{"one changed rate", one, other, 1}, {"all new", State{}, one, 1 + 10_002 + 9_901 + 1 + 9_900}} {
		b.Run(r.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if p := Diff(r.old, r.new); len(p.Steps) != r.steps {
					b.Fatalf("%d steps", len(p.Steps))
				}
			}
		})
	}
}
