//go:build linux

package qdisc

import (
	"math"
	"testing"
)

// The words that tc gets come to the same numbers again.
func TestREDWords(t *testing.T) {
	for _, start := range []float64{8, 30, 33.4, 1000} {
		for ewma := uint64(1); ewma <= 30; ewma++ {
			if got := redEWMA(start, redBurst(start, ewma)); got != ewma {
				t.Errorf("min of %v packets, ewma %d: burst %d makes %d", start, ewma, redBurst(start, ewma), got)
			}
		}
	}
	for _, ewma := range []uint64{1, 2, 5, 9, 20} {
		r := redQueue{redThresholds: redThresholds{ewma: ewma}, avpkt: 1000}
		for cell := uint64(0); cell < 32; cell++ {
			// What takes less than a microsecond cannot be said, nor what takes
			// much longer than a packet at some bytes/s.
			us := redCells * float64(uint64(1)<<cell) / r.fading() / ticksPerMicro
			if cell > 0 && (us < 3 || us > 1e8) {
				continue
			}
			if got := r.cell(r.bandwidthOf(cell)); got != cell {
				t.Errorf("ewma %d, scell_log %d: bandwidth %v makes %d", ewma, cell, r.bandwidthOf(cell), got)
			}
		}
	}
}

func TestREDTable(t *testing.T) {
	table := redTable()
	for i, v := range table {
		if v > 31 || i > 0 && v < table[i-1] {
			t.Errorf("cell %d is %d", i, v)
		}
	}
	if table[0] != 0 || table[255] != 31 || table[128] != byte(math.Floor(128*31/362.04)) {
		t.Errorf("%v", table)
	}
}
