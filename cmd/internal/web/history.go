package web

import "slices"

const (
	// keepFor is how far back the history goes, in milliseconds.
	keepFor = 15 * 60 * 1000
	// mostUses are kept, of 24 bytes each. Where trees are so large or so busy that a second
	// each does not fit, what is older gets coarser.
	mostUses = 1 << 20
	// longest is a tick at most, in milliseconds.
	longest = 60 * 1000
)

// use is what one row, which is a branch in one direction, did over a tick. What did nothing
// has none.
type use struct {
	row     uint32
	delay   uint32  // how long the last packet waits that waits at the end, in microseconds
	drops   float32 // packets a second
	marks   float32 // and these
	backlog uint32  // bytes that wait at the end
	bits    float32 // a second
}

// tick is what all rows did over a time. Its uses are in the order of rows, and stay as they
// are once it is in a history.
type tick struct {
	seq  uint64 // of the last look in it
	at   int64  // its end, in milliseconds since 1970
	took int64  // milliseconds
	uses []use
}

// history is what was seen in the last quarter of an hour, the oldest first.
type history struct {
	ticks []tick
	uses  int // in all of them
	most  int // that there may be
	seq   uint64
}

// add adds what was seen over some time, and gives it its number.
func (h *history) add(at, took int64, uses []use) {
	h.seq++
	h.ticks = append(h.ticks, tick{h.seq, at, took, uses})
	h.uses += len(uses)
	for h.ticks[0].at <= at-keepFor {
		h.forget()
	}
	for h.uses > h.most && h.thin() {
	}
	for h.uses > h.most && len(h.ticks) > 1 {
		h.forget()
	}
}

// end is when the last tick ended; 0: there is none.
func (h *history) end() int64 {
	if len(h.ticks) == 0 {
		return 0
	}
	return h.ticks[len(h.ticks)-1].at
}

// forget lets go of the oldest.
func (h *history) forget() {
	h.uses -= len(h.ticks[0].uses)
	h.ticks[0] = tick{} // what lies behind it may be long in use
	h.ticks = h.ticks[1:]
}

// thin makes one of each two neighbours, where that is not too long to ever be forgotten, and
// says whether there were any. As it is done again and again, what is new has one look for each
// tick, and the older it is the more. The last one stays, as streams know its number.
func (h *history) thin() bool {
	thinned, before := []tick(nil), len(h.ticks)
	h.uses = 0
	for i := 0; i < before; i++ {
		t := h.ticks[i]
		if i+2 < before && t.took+h.ticks[i+1].took <= longest {
			i++
			t = merged(t, h.ticks[i])
		}
		thinned = append(thinned, t)
		h.uses += len(t.uses)
	}
	h.ticks = thinned
	return len(thinned) < before
}

// merged is one tick of two: what went through and was dropped on average, and the worst of what
// waited.
func merged(a, b tick) tick {
	t := tick{seq: b.seq, at: b.at, took: a.took + b.took, uses: make([]use, 0, max(len(a.uses), len(b.uses)))}
	share := float64(a.took) / float64(max(t.took, 1))
	mean := func(u, v float32) float32 { return float32(share*float64(u) + (1-share)*float64(v)) }
	for x, y := a.uses, b.uses; len(x) > 0 || len(y) > 0; {
		var u, v use
		switch {
		case len(y) == 0 || len(x) > 0 && x[0].row < y[0].row:
			u, x = x[0], x[1:]
			v.row = u.row
		case len(x) == 0 || y[0].row < x[0].row:
			v, y = y[0], y[1:]
			u.row = v.row
		default:
			u, v, x, y = x[0], y[0], x[1:], y[1:]
		}
		t.uses = append(t.uses, use{
			row: u.row, delay: max(u.delay, v.delay), backlog: max(u.backlog, v.backlog),
			drops: mean(u.drops, v.drops), marks: mean(u.marks, v.marks), bits: mean(u.bits, v.bits),
		})
	}
	t.uses = slices.Clip(t.uses)
	return t
}

// since are the ticks after a number.
func (h *history) since(seq uint64) []tick {
	i, _ := slices.BinarySearchFunc(h.ticks, seq+1, func(t tick, seq uint64) int {
		switch {
		case t.seq < seq:
			return -1
		case t.seq > seq:
			return 1
		}
		return 0
	})
	return slices.Clone(h.ticks[i:])
}

// series is what one row did, a value for each tick.
type series struct {
	Seq     uint64    `json:"seq"` // of the last tick
	At      []int64   `json:"t"`
	Took    []int64   `json:"d"`
	Bits    []float32 `json:"bits"`
	Delay   []uint32  `json:"delay"`
	Drops   []float32 `json:"drops"`
	Marks   []float32 `json:"marks"`
	Backlog []uint32  `json:"backlog"`
}

// of is what a row did.
func (h *history) of(row uint32) series {
	n := len(h.ticks)
	s := series{h.seq, make([]int64, n), make([]int64, n), make([]float32, n), make([]uint32, n), make([]float32, n), make([]float32, n), make([]uint32, n)}
	for i, t := range h.ticks {
		s.At[i], s.Took[i] = t.at, t.took
		j, there := slices.BinarySearchFunc(t.uses, row, func(u use, row uint32) int { return int(int64(u.row) - int64(row)) })
		if there {
			u := t.uses[j]
			s.Bits[i], s.Delay[i], s.Drops[i], s.Marks[i], s.Backlog[i] = u.bits, u.delay, u.drops, u.marks, u.backlog
		}
	}
	return s
}
