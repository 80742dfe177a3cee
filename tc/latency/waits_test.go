package latency

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Buckets follow on each other without a gap, none is wider than a sixteenth of what it has,
// and each has what bucketOf puts there.
func TestBuckets(t *testing.T) {
	end := uint64(0)
	for i := range allBuckets {
		from, to := bounds(i)
		if from != end || to <= from {
			t.Fatalf("bucket %d is from %d to %d, and the one before it ends at %d", i, from, to, end)
		}
		if from >= 1024 && (to-from)*16 > from {
			t.Errorf("bucket %d from %d to %d is wider than a sixteenth", i, from, to)
		}
		for _, ns := range []uint64{from, (from + to) / 2, to - 1} {
			if got := bucketOf(ns); got != i {
				t.Fatalf("%d ns are in bucket %d, want %d", ns, got, i)
			}
		}
		end = to
	}
	if end != 1<<36 {
		t.Errorf("the last bucket ends at %d", end)
	}
	for _, ns := range []uint64{1 << 36, 1 << 40, ^uint64(0)} {
		if got := bucketOf(ns); got != allBuckets-1 {
			t.Errorf("%d ns are in bucket %d, want the last", ns, got)
		}
	}
}

// waited are waits of the given times.
func waited(times ...time.Duration) *Waits {
	w := &Waits{}
	for _, d := range times {
		w.Packets++
		w.Total += d
		w.Longest = max(w.Longest, d)
		w.buckets[bucketOf(uint64(d))]++
	}
	return w
}

func TestQuantile(t *testing.T) {
	var even []time.Duration
	for i := range 1000 {
		even = append(even, time.Duration(i+1)*time.Millisecond)
	}
	rand.Shuffle(len(even), func(i, j int) { even[i], even[j] = even[j], even[i] })
	const µs, ms = time.Microsecond, time.Millisecond
	for _, tt := range []struct {
		name           string
		of             *Waits
		p50, p99, mean time.Duration
	}{
		{"none", waited(), 0, 0, 0},
		{"one", waited(3 * ms), 3 * ms, 3 * ms, 3 * ms},
		{"two", waited(1*ms, 9*ms), 1 * ms, 9 * ms, 5 * ms},
		{"even", waited(even...), 500 * ms, 990 * ms, 500500 * µs},
		{"none that waits", waited(0, 0, 0), 0, 0, 0},
		{"longer than buckets go", waited(2 * time.Hour), 1 << 36, 1 << 36, 2 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			near := func(what string, got, want time.Duration) {
				t.Helper()
				if off := got - want; off > want/25 || off < -want/25 {
					t.Errorf("%s is %v, want %v", what, got, want)
				}
			}
			near("p50", tt.of.Quantile(0.5), tt.p50)
			near("p99", tt.of.Quantile(0.99), tt.p99)
			if got := tt.of.Mean(); got != tt.mean {
				t.Errorf("mean is %v, want %v", got, tt.mean)
			}
			if got := tt.of.Quantile(1); got > tt.of.Longest {
				t.Errorf("all waited %v at most, but the longest is %v", got, tt.of.Longest)
			}
		})
	}
}

// What leaves wait is together what the branch above them waits.
func TestAdd(t *testing.T) {
	w := *waited(time.Millisecond, 4*time.Millisecond)
	w.Add(waited(9 * time.Millisecond))
	if want := *waited(time.Millisecond, 4*time.Millisecond, 9*time.Millisecond); w != want {
		t.Errorf("got %v, want %v", w, want)
	}
}
