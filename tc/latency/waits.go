package latency

import (
	"math"
	"math/bits"
	"time"
)

// Buckets of the program: sixteen for each doubling, so that none is wider than a sixteenth
// of what is in it, from a resolution of 64 ns to more than a minute.
const (
	unitBits   = 6
	fineBits   = 4
	logLimit   = 30
	allBuckets = (logLimit - fineBits + 1) << fineBits
)

// bucketOf is the bucket of a wait in nanoseconds; the last has what is longer, too.
func bucketOf(ns uint64) int {
	u := ns >> unitBits
	if u >= 1<<logLimit {
		return allBuckets - 1
	}
	if u < 1<<fineBits {
		return int(u)
	}
	log := bits.Len64(u) - 1
	return (log-fineBits+1)<<fineBits + int(u>>(log-fineBits))&(1<<fineBits-1)
}

// bounds are the least wait in a bucket, and the least above it.
func bounds(bucket int) (from, to uint64) {
	log, fine := bucket>>fineBits, uint64(bucket&(1<<fineBits-1))
	if log == 0 {
		return fine << unitBits, (fine + 1) << unitBits
	}
	shift := unitBits + log - 1
	return (1<<fineBits + fine) << shift, (1<<fineBits + fine + 1) << shift
}

// Waits are how long packets waited. The zero value has none.
type Waits struct {
	Packets uint64 // that left; one that is sent in segments is one
	Total   time.Duration
	Longest time.Duration
	buckets [allBuckets]uint64
}

// Add adds the packets of others.
func (w *Waits) Add(o *Waits) {
	w.Packets += o.Packets
	w.Total += o.Total
	w.Longest = max(w.Longest, o.Longest)
	for i, n := range o.buckets {
		w.buckets[i] += n
	}
}

// Quantile is the time that a share of the packets, as 0.99, waited at most. Above a
// microsecond it is within four parts in a hundred. Of no packets it is 0.
func (w *Waits) Quantile(share float64) time.Duration {
	rank := uint64(math.Ceil(share * float64(w.Packets)))
	seen := uint64(0)
	for i, n := range w.buckets {
		if seen += n; n > 0 && seen >= rank {
			from, to := bounds(i)
			return min(time.Duration((from+to)/2), w.Longest)
		}
	}
	return w.Longest
}

// Mean is the time that they waited on average.
func (w *Waits) Mean() time.Duration {
	if w.Packets == 0 {
		return 0
	}
	return w.Total / time.Duration(w.Packets)
}
