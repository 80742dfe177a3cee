//go:build linux

package qdisc

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Which kind a leaf gets on kernels that have only some, and what is said where none will do.
func TestSettleKernel(t *testing.T) {
	const ms uint64 = 1_000_000
	all := disciplines
	for _, tt := range []struct {
		name       string
		kinds      []*discipline // that the kernel has
		qdisc      hierarchy.Qdisc
		want       hierarchy.Qdisc
		wantErr    string
		notSupport bool
	}{
		{name: "best default", kinds: all, want: qdisc("fq_codel", "limit", 10240, "memory_limit", 4<<20, "flows", 1024, "target", 5*ms, "interval", 100*ms, "quantum", 1514, "ecn", 1, "drop_batch", 64)},
		{name: "default without fq_codel", kinds: []*discipline{&sfq, &bfifo}, want: qdisc("sfq", "limit", 32, "perturb", 10_000*ms, "quantum", 1514, "flows", 32, "divisor", 1024, "depth", 127, "headdrop", 0)},
		{name: "default without either", kinds: []*discipline{&tbf, &bfifo}, want: qdisc("bfifo", "limit", 89760)},
		{name: "no kind at all", wantErr: "queueing is not supported by this kernel: use one with CONFIG_NET_SCHED", notSupport: true},
		{name: "kind is missing", kinds: []*discipline{&pfifo, &bfifo}, qdisc: qdisc("fq_codel"), wantErr: `qdisc "fq_codel" is not supported by this kernel (module sch_fq_codel): use bfifo, pfifo`, notSupport: true},
		{name: "kind that nothing can stand in for", kinds: []*discipline{&pfifo, &bfifo}, qdisc: qdisc("netem"), wantErr: `qdisc "netem" is not supported by this kernel (module sch_netem): no other delays and loses packets`, notSupport: true},
		{name: "kind that cannot be made", kinds: all, qdisc: qdisc("wfq"), wantErr: `qdisc "wfq" is not supported by this kernel: use ` + allKinds(), notSupport: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.qdisc
			kinds := Kernel{known: map[*discipline]bool{}, ask: func(d *discipline) (bool, error) { return slices.Contains(tt.kinds, d), nil }}
			err := kinds.Settle(t.Context(), &got, place)
			if err != nil || tt.wantErr != "" {
				if err == nil || err.Error() != tt.wantErr || errors.Is(err, rtnl.ErrNotSupported) != tt.notSupport {
					t.Errorf("got %v, want %s", err, tt.wantErr)
				}
				return
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Fatalf("(-want +got)\n%s", d)
			}
			lasting(t, got, place)
		})
	}
}

// Once the context has ended the kernel is asked for no further kind.
func TestAskEnds(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	asked := 0
	k := Kernel{known: map[*discipline]bool{}, ask: func(*discipline) (bool, error) {
		asked++
		end()
		return false, nil
	}}
	if _, _, err := k.Leaves(ctx); !errors.Is(err, context.Canceled) || asked != 1 {
		t.Errorf("asked for %d kinds: %v", asked, err)
	}
	if err := k.Settle(ctx, &hierarchy.Qdisc{}, Site{}); !errors.Is(err, context.Canceled) {
		t.Errorf("settled: %v", err)
	}
}

// allKinds are the names of all kinds, in order.
func allKinds() string {
	var names []string
	for _, d := range disciplines {
		names = append(names, d.Name)
	}
	return strings.Join(names, ", ")
}
