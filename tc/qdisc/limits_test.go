//go:build linux

package qdisc

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
)

func TestDefaults(t *testing.T) {
	type result struct {
		Burst, QueueBytes hierarchy.Size
		QueuePackets      uint64
		Memory            hierarchy.Size
		Target            string
	}
	for _, tt := range []struct {
		name string
		s    Site
		want result
	}{
		{"slow", Site{1 * hierarchy.Mbit, 1 * hierarchy.Mbit, 1514, 65536, 250}, result{1250, 89760, 32, 4 << 20, "18.168ms"}},
		{"medium", Site{10 * hierarchy.Mbit, 10 * hierarchy.Mbit, 1514, 65536, 250}, result{12500, 89760, 32, 4 << 20, "5ms"}},
		{"fast", Site{10 * hierarchy.Gbit, 10 * hierarchy.Gbit, 1514, 65536, 250}, result{12500000, 8750000, 1000, 32 << 20, "5ms"}},
		{"may borrow", Site{10 * hierarchy.Mbit, 100 * hierarchy.Mbit, 1514, 1514, 250}, result{12500, 87500, 57, 12500000, "5ms"}},
		{"slower than anything", Site{8, 8, 1514, 65536, 250}, result{1, 89760, 32, 4 << 20, "1m0s"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := result{Burst(tt.s.Rate, 0), tt.s.QueueBytes(), tt.s.queuePackets(), tt.s.queueMemory(), tt.s.codelTarget().String()}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}
