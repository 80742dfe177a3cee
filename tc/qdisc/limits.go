//go:build linux

package qdisc

import (
	"math"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

const (
	// burstTime of a branch's rate may be sent at once, and of its ceil: so over any
	// tenth of a second it sends no more than a tenth above, and the last packet, for
	// which HTB goes into debt. That holds for slow branches too, and does them no
	// harm: the next packet comes when the debt is paid. The burst is for the lateness
	// of timers.
	burstTime = 10 * time.Millisecond
	// queueTime is how long a packet may wait in a queue without a brain of its
	// own, at the branch's ceil.
	queueTime = 7 * time.Millisecond
	// Beside the largest packet queueFrames fit in every queue that counts bytes. If
	// the packet did not, a sender of such packets (UDP_SEGMENT) would get none
	// through, ever; with few frames TCP connections that find no room each time they
	// try are given up after 15 attempts (tcp_send_probe0, net/ipv4/tcp_output.c, v6.12).
	queueFrames = 16
	// queueMost is the limit of such a queue at most, and of memory: what a queue may take
	// where a rate is far above what the line carries.
	queueMost = 32 << 20
)

// Burst is the burst for a rate, of HTB as of tbf, and HTB's cburst for a ceil:
// burstTime of it and more bytes, but no more than the kernel can count.
func Burst(rate hierarchy.Bandwidth, more hierarchy.Size) hierarchy.Size {
	return min(max(rtnl.BytesIn(uint64(burstTime), rate)+more, 1), rtnl.TickBytes(math.MaxUint32, rate))
}

// QueueBytes is the limit of a queue that counts bytes.
func (s Site) QueueBytes() hierarchy.Size { return max(s.averageBytes(), s.Packet+queueFrames*s.MTU) }

// averageBytes is how long a queue that drops by its average length may become
// in the mean; it holds more than the largest packet for a while.
func (s Site) averageBytes() hierarchy.Size {
	return max(min(rtnl.BytesIn(uint64(queueTime), s.Ceil), queueMost), queueFrames*s.MTU)
}

// queuePackets is the limit of a queue that counts packets, which may be large
// ones: no more than queueTime of the MTU's size, at least as
// many as a short burst of small ones has, at most what a queue of the kernel's
// own has.
func (s Site) queuePackets() uint64 {
	return min(max(uint64(rtnl.BytesIn(uint64(queueTime), s.Ceil)/s.MTU), 32), 1000)
}

// queueMemory is the limit of a queue that counts memory, twice the bytes
// and more: half a second of ceil, so that it ends floods and leaves the rest
// to the queue's own control.
func (s Site) queueMemory() hierarchy.Size {
	return min(max(2*rtnl.BytesIn(uint64(500*time.Millisecond), s.Ceil), 4<<20), queueMost)
}

// codelTarget is how long packets may wait on the whole: CoDel's 5 ms, unless
// a single packet takes longer, up to what is of any use.
func (s Site) codelTarget() time.Duration {
	packet := rtnl.Scale(uint64(s.MTU), uint64(time.Second)*3/2, rtnl.BytesPerSecond(s.Rate))
	return max(5*time.Millisecond, time.Duration(min(packet, uint64(codelTargetMax))))
}

// Full is what waits in a queue when it is full, if that is one which counts
// bytes or packets only and has the limit that it gets when nothing is said.
func Full(q hierarchy.Qdisc, s Site) hierarchy.Size {
	limit, _ := q.Get("limit")
	switch {
	case q.Kind == bfifo.Name && limit == uint64(s.QueueBytes()):
		return s.QueueBytes()
	case q.Kind == sfq.Name && limit == s.queuePackets():
		return hierarchy.Size(limit) * s.MTU
	}
	return 0
}
