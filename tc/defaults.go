//go:build linux

package tc

import (
	"math"
	"math/bits"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

// What a policy leaves open is chosen here, and only here, from four things: the
// rate and ceil of a branch, the MTU, and the largest packet that the stack
// hands down. With segmentation offload that is up to 64 KiB; HTB charges and
// sends it as one.

const (
	// burstTime of a branch's rate may be sent at once, and burstFrames at least:
	// HTB is woken by timers, serves whole packets, and forgets what a branch saves
	// up beyond its burst while others have their turn. Below a few packets slow
	// branches get less than their share; a larger burst is what fills the queues
	// behind this interface when a branch wakes up.
	burstTime   = 10 * time.Millisecond
	burstFrames = 8
	// A leaf's quantum is what its rate sends in a certain time, the same for
	// all leaves of an interface: a power of two between these. One that
	// borrows sends its quantum in a row while the others that borrow wait, so
	// that the time bounds a round over all of them; guarantees are served
	// before and are not delayed. The longer it is, the longer the pauses of a
	// branch that lives on what it borrows, and the longer it takes until shares
	// are what they should be.
	shortestRound = 1 << 25 * time.Nanosecond // about 34 ms
	usualRound    = 1 << 27 * time.Nanosecond // about 134 ms
	longestRound  = 1 << 29 * time.Nanosecond // about 0.5 s
	// A leaf gets 1/lateBonus more of what is lent by two branches at a time, in
	// turns: see quanta.
	lateBonus = 8
	// turnFrames is what TCP hands down in a packet at a few Mbit/s, which is what a
	// slow leaf may reach by borrowing.
	turnFrames = 10
	// queueTime is how long a packet may wait in a queue without a brain of its
	// own, at the branch's ceil.
	queueTime = 7 * time.Millisecond
	// Beside the largest packet queueFrames fit in every queue that counts bytes. If
	// the packet did not, a sender of such packets (UDP_SEGMENT) would get none
	// through, ever; with few frames TCP connections that find no room each time they
	// try are given up after 15 attempts (tcp_send_probe0, net/ipv4/tcp_output.c, v6.12).
	queueFrames = 16
)

// defaultBurst is the burst for a rate: burstTime of it, at slow rates
// burstFrames, but no more than the kernel can count. It does for burst and
// rate, and for cburst and ceil.
func defaultBurst(rate hierarchy.Bandwidth, mtu hierarchy.Size) hierarchy.Size {
	return min(max(bytesIn(uint64(burstTime), rate), burstFrames*mtu), tickBytes(math.MaxUint32, rate))
}

// quantumTime is the time that the quanta below an interface are proportional
// to: the shortest, up to usualRound, in which even the slowest leaf sends the
// largest packet, and the shortest up to longestRound in which it sends turnFrames.
// HTB serves at least one packet in a turn, whatever the quantum says, so that
// smaller quanta would not be kept. Because it is a power of two, a changed rate
// seldom changes it, and with it the quanta of all the others.
func quantumTime(slowest hierarchy.Bandwidth, mtu, packet hierarchy.Size) time.Duration {
	t := shortestRound
	for {
		sent := bytesIn(uint64(t), slowest)
		if (sent >= packet || t >= usualRound) && sent >= turnFrames*mtu || t >= longestRound {
			return t
		}
		t *= 2
	}
}

// quanta chooses the quanta of the leaves at and below b that have none. HTB keeps
// one place in the round over the children of a branch, whoever lends; where a
// branch lends by itself and those above it lend too, each moves the place on, and
// a turn that comes from above often begins in the middle (htb_lookup_leaf,
// net/sched/sch_htb.c, v6.12). That leaves less for the leaves below such a branch,
// so they get larger quanta. above is what the branches above b lend when all
// leaves are busy.
func quanta(b *hierarchy.Branch, above hierarchy.Bandwidth, late bool, mtu hierarchy.Size, t time.Duration) {
	if b.Leaf() {
		if b.Quantum == 0 {
			b.Quantum = quantum(b.Rate, mtu, t)
			if late {
				b.Quantum = min(b.Quantum+b.Quantum/lateBonus, math.MaxInt32)
			}
		}
		return
	}
	lent := b.Rate
	for _, c := range b.Children {
		lent -= min(lent, c.Rate)
	}
	late = late || above > 0 && lent > above/lateBonus
	for _, c := range b.Children {
		quanta(c, above+lent, late, mtu, t)
	}
}

// quantum is the quantum of a leaf: what is lent is shared in proportion to it.
// Where the slowest leaf does not send a frame in longestRound it gets one all
// the same, and so borrows more than its share.
//
// tc's bound of 200,000 is that of quanta that the kernel makes up. The
// kernel's own bound is 2^31-1.
func quantum(rate hierarchy.Bandwidth, mtu hierarchy.Size, t time.Duration) hierarchy.Size {
	return min(max(bytesIn(uint64(t), rate), mtu), math.MaxInt32)
}

// scale is v*num/den, at most 2^64-1.
func scale(v, num, den uint64) uint64 {
	hi, lo := bits.Mul64(v, num)
	if hi >= den {
		return math.MaxUint64
	}
	q, _ := bits.Div64(hi, lo, den)
	return q
}

// queueBytes is the limit of a queue that counts bytes.
func queueBytes(s site) hierarchy.Size { return max(averageBytes(s), s.packet+queueFrames*s.mtu) }

// averageBytes is how long a queue that drops by its average length may become
// in the mean; it holds more than the largest packet for a while.
func averageBytes(s site) hierarchy.Size {
	return max(bytesIn(uint64(queueTime), s.ceil), queueFrames*s.mtu)
}

// queuePackets is the limit of a queue that counts packets, which may be large
// ones: no more than queueTime of the MTU's size, at least as
// many as a short burst of small ones has, at most what a queue of the kernel's
// own has.
func queuePackets(s site) uint64 {
	return min(max(uint64(bytesIn(uint64(queueTime), s.ceil)/s.mtu), 32), 1000)
}

// queueMemory is the limit of a queue that counts memory, twice the bytes
// and more: half a second of ceil, so that it ends floods and leaves the rest
// to the queue's own control.
func queueMemory(s site) hierarchy.Size {
	return min(max(2*bytesIn(uint64(500*time.Millisecond), s.ceil), 4<<20), 32<<20)
}

// codelTarget is how long packets may wait on the whole: CoDel's 5 ms, unless
// a single packet takes longer, up to what is of any use.
func codelTarget(s site) time.Duration {
	packet := scale(uint64(s.mtu), nsPerSecond*3/2, bytesPerSecond(s.rate))
	return max(5*time.Millisecond, time.Duration(min(packet, uint64(codelTargetMax))))
}
