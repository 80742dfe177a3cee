package web

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMerged(t *testing.T) {
	a := tick{1, 1000, 1000, []use{{row: 1, delay: 5, drops: 4, marks: 8, backlog: 1, bits: 100}, {row: 3, bits: 40}}}
	b := tick{2, 4000, 3000, []use{{row: 1, delay: 2, backlog: 9, bits: 200}, {row: 2, drops: 2, bits: 80}}}
	want := tick{2, 4000, 4000, []use{{row: 1, delay: 5, drops: 1, marks: 2, backlog: 9, bits: 175}, {row: 2, drops: 1.5, bits: 60}, {row: 3, bits: 10}}}
	if d := cmp.Diff(want, merged(a, b), cmp.AllowUnexported(tick{}, use{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if none := merged(tick{}, tick{seq: 1}); len(none.uses) != 0 || none.seq != 1 {
		t.Errorf("%v", none)
	}
}

// rowsOf are uses of rows from one on, all alike.
func rowsOf(first, n int, bits uint64) []use {
	all := make([]use, n)
	for i := range all {
		all[i] = use{row: uint32(first + i), bits: float32(bits)}
	}
	return all
}

// TestBounded: however many rows are busy, or different ones each second, no more is kept than
// may be, what is kept goes a quarter of an hour back, and its mean is that of what was.
func TestBounded(t *testing.T) {
	for _, tt := range []struct {
		name    string
		most, n int
		moves   int // each second others are busy
		spans   int64
	}{
		{"all of it", 1 << 20, 10, 0, keepFor},
		{"thinned", 5000, 50, 0, keepFor * 9 / 10},
		{"others each second", 5000, 50, 50, keepFor / 20},
		{"more than there is room for", 40, 50, 0, 0},
		{"none", 10, 0, 0, keepFor},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := history{most: tt.most}
			for i := range 4000 {
				h.add(int64(i)*1000, 1000, rowsOf(i*tt.moves, tt.n, uint64(100+i%2*100)))
				uses, at := 0, int64(-1)
				for _, k := range h.ticks {
					if uses += len(k.uses); k.at <= at {
						t.Fatalf("after %d: %d comes after %d", i, k.at, at)
					}
					at = k.at
				}
				if uses != h.uses || uses > max(h.most, tt.n) || at != int64(i)*1000 {
					t.Fatalf("after %d: %d are kept, counted as %d, of %d, to %d", i, uses, h.uses, h.most, at)
				}
			}
			if n := len(h.ticks); h.ticks[n-1].took > 2000 {
				t.Errorf("the last is of %d ms", h.ticks[n-1].took)
			}
			span, took := h.end()-h.ticks[0].at+h.ticks[0].took, int64(0)
			for _, k := range h.ticks {
				took += k.took
			}
			if span < tt.spans || span > keepFor*2 || took != span {
				t.Errorf("%d ms are kept, in ticks of %d", span, took)
			}
			if tt.moves > 0 || tt.n == 0 {
				return
			}
			s, sum := h.of(3), int64(0)
			for i, b := range s.Bits {
				sum += int64(b) * s.Took[i]
			}
			if mean := sum / took; tt.spans > 0 && (mean < 149 || mean > 151) {
				t.Errorf("the mean is %d", mean)
			}
		})
	}
}

func TestSince(t *testing.T) {
	h := history{most: 1 << 20}
	for i := range 10 {
		h.add(int64(i)*1000, 1000, nil)
	}
	for seq, want := range map[uint64]int{0: 10, 1: 9, 9: 1, 10: 0, 99: 0} {
		if got := h.since(seq); len(got) != want || want > 0 && got[0].seq != seq+1 {
			t.Errorf("after %d: %v", seq, got)
		}
	}
	h.thin() // 2, 4, 6, 8, and the last two as they are
	if got := h.since(5); len(got) != 4 || got[0].seq != 6 || got[3].seq != 10 {
		t.Errorf("%v", got)
	}
}

func TestRows(t *testing.T) {
	r := rows{known: map[key]*known{}}
	a, b := r.number(key{path: "eth0"}, 1), r.number(key{path: "eth0", direction: 1}, 1)
	if again := r.number(key{path: "eth0"}, 5); a == b || again != a {
		t.Errorf("%d, %d, and %d", a, b, again)
	}
	r.forget(3)
	if len(r.known) != 1 || r.number(key{path: "eth0", direction: 1}, 6) == b {
		t.Errorf("%v", r.known)
	}
}
