//go:build linux

package tc

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// What a policy leaves open is chosen here, and for queues in package qdisc, from
// four things: the rate and ceil of a branch, the MTU, and the largest packet that the
// stack hands down. With segmentation offload that is up to 64 KiB; HTB charges and
// sends it as one.

const (
	// A branch that borrows up to a ceil of its own below the line's gets
	// 1/cappedBonus of the largest packet more of cburst, which lets it make use
	// of its turn: see crowded.
	cappedBonus = 4
	// A leaf's quantum is what its rate sends in a certain time, the same for
	// all leaves of an interface: a power of two between these. One that
	// borrows sends its quantum in a row while the others that borrow wait, so
	// that the time bounds a round over all of them; guarantees are served
	// before and are not delayed. The longer it is, the longer the pauses of a
	// branch that lives on what it borrows, and the longer it takes until shares
	// are what they should be.
	crowdedRound  = 1 << 23 * time.Nanosecond // about 8 ms: see crowded
	shortestRound = 1 << 25 * time.Nanosecond // about 34 ms
	usualRound    = 1 << 27 * time.Nanosecond // about 134 ms
	longestRound  = 1 << 29 * time.Nanosecond // about 0.5 s
	// A leaf gets 1/lateBonus more of what is lent by two branches at a time, in
	// turns: see quanta.
	lateBonus = 8
	// turnFrames is what TCP hands down in a packet at a few Mbit/s, which is what a
	// slow leaf may reach by borrowing.
	turnFrames = 10
)

// capped says whether a class borrows up to a ceil that is below the line's. A turn
// of any other needs no cburst: it does not get more than the ceil in it.
func capped(c *hierarchy.Class, line hierarchy.Bandwidth) bool {
	return c.Rate < c.Ceil && c.Ceil < line
}

// shape chooses the quanta and bursts of a tree where it has none, and rounds its
// rates and bursts to what the kernel keeps.
func shape(t *hierarchy.Tree, mtu, packet hierarchy.Size) error {
	slowest := t.Root.Rate
	for b := range t.All() {
		if b.Leaf() {
			slowest = min(slowest, b.Rate)
		}
	}
	more := packet / cappedBonus
	round := quantumTime(slowest, mtu, packet)
	for round > crowdedRound && crowded(t, more, round) {
		round /= 2
	}
	quanta(t.Root, 0, false, mtu, round)
	var errs []error
	for b := range t.All() {
		m := hierarchy.Size(0)
		if capped(&b.Class, t.Root.Ceil) {
			m = more
		}
		if err := settleClass(&b.Class, m); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", b.Path, err))
		}
	}
	return errors.Join(errs...)
}

// crowded says whether quanta of the given time are too large for the cburst of a
// branch with a ceil of its own. In its turn such a branch is served at the speed of
// the line, the others that borrow wait, and what is above its ceil comes from
// cburst. When that is used up the turn ends, the quantum is not (htb_class_mode and
// htb_dequeue_tree, net/sched/sch_htb.c, v6.12), and what the branch saves up
// beyond cburst until it is served again is lost to it. A cburst that held every
// turn would hold the ceil no longer: that of a fast branch beside a very slow one,
// for whose sake quanta are large, would be half a second of it. So turns are
// made shorter, and the slowest may then borrow more than its share.
func crowded(t *hierarchy.Tree, more hierarchy.Size, round time.Duration) bool {
	for b := range t.All() {
		if !capped(&b.Class, t.Root.Ceil) {
			continue
		}
		turn := rtnl.Scale(uint64(rtnl.BytesIn(uint64(round), b.Rate)), uint64(t.Root.Ceil-b.Ceil), uint64(t.Root.Ceil))
		if hierarchy.Size(turn) > qdisc.Burst(b.Ceil, more) {
			return true
		}
	}
	return false
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
		sent := rtnl.BytesIn(uint64(t), slowest)
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
	return min(max(rtnl.BytesIn(uint64(t), rate), mtu), math.MaxInt32)
}
