//go:build linux

package tc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Settle fills what the policy leaves open in t for this interface: bursts,
// quanta, the leaves' qdiscs and every parameter of them, and what the line adds to
// each packet. It rounds all values
// to what the kernel keeps, so that t.State() equals what [Device.Read] gives
// after an apply, paths aside. Inner branches lose quantum and priority, which
// the kernel ignores.
//
// It asks the kernel which kinds of qdiscs it has, as [qdisc.Kernel] does. The error
// lists all that the kernel could not keep or does not have, each with its path; it
// is [rtnl.ErrNotSupported] when a kind is missing.
func (d *Device) Settle(ctx context.Context, t *hierarchy.Tree) error {
	packet := d.packet
	mtu := d.link.Frame()
	if t.MTU != 0 {
		packet, mtu = t.MTU, t.MTU
	}
	kinds := qdisc.Ask(d.Interface)
	hz, err := clock()
	if err != nil {
		return d.Fail("read the kernel's clock", err)
	}
	var errs []error
	refuse := func(b *hierarchy.Branch, err error) {
		errs = append(errs, fmt.Errorf("%s: %w", b.Path, err))
	}
	line, err := t.Line.On(d.link.Header)
	if err != nil {
		refuse(t.Root, err)
	}
	if err := shape(t, mtu, packet); err != nil {
		errs = append(errs, err)
	}
	for b := range t.All() {
		b.Link = line
		if !b.Leaf() {
			b.Quantum, b.Prio = 0, 0
			continue
		}
		err := kinds.Settle(ctx, &b.Qdisc, qdisc.Site{Rate: b.Rate, Ceil: b.Ceil, MTU: mtu, Packet: packet, HZ: hz})
		if e := (*rtnl.OpError)(nil); errors.As(err, &e) {
			return err // could not ask, about this leaf or any other
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			refuse(b, err)
		}
	}
	return errors.Join(errs...)
}

// clock is the number of ticks per second of the kernel's clock, its CONFIG_HZ. It
// is shown nowhere, but a clock that only ticks has that resolution
// (posix_get_coarse_res, kernel/time/posix-timers.c, v6.12).
func clock() (hz uint64, err error) {
	var t unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &t); err != nil {
		return 0, err
	}
	ns := uint64(t.Nano())
	if ns == 0 {
		return 0, errors.New("it has no resolution")
	}
	return (uint64(time.Second) + ns/2) / ns, nil
}

// TimerRate is how often a second the kernel can wake a queue that waits for its
// turn: 1,000,000,000 with high-resolution timers, else its clock interrupts
// (psched_show, net/sched/sch_api.c, v6.12).
func TimerRate() (uint64, error) {
	const file = "/proc/net/psched"
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	words := bytes.Fields(b)
	if len(words) < 4 {
		return 0, fmt.Errorf("%s: %q has no fourth word", file, b)
	}
	n, err := strconv.ParseUint(string(words[3]), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// Remarks says what a settled tree asks for and the kernel does less exactly on this
// interface, each with what mends it.
//
// A packet that is segmented after its queue counts with the headers of all its parts
// (qdisc_pkt_len_init, net/core/dev.c, v6.12), but what the line adds is added once.
// Where packets of the MTU could so take a hundredth more than their rate, that is
// remarked on.
//
// So is a leaf in which packets may wait for longer than a quarter of a second at its
// ceil, where the queue is as it comes: for a packet of the largest size, or for a full
// queue that only counts bytes or packets.
func (d *Device) Remarks(t *hierarchy.Tree) []string {
	return slices.DeleteFunc([]string{d.segmented(t), d.waiting(t)}, func(s string) bool { return s == "" })
}

func (d *Device) segmented(t *hierarchy.Tree) string {
	frame := hierarchy.Size(d.link.MTU) + d.link.Header
	parts := d.packet / frame
	if parts < 2 {
		return ""
	}
	line := t.Root.Link
	counted, sent := line.Bytes(parts*frame), parts*line.Bytes(frame)
	if sent*100 < counted*101 {
		return ""
	}
	return fmt.Sprintf("%s: packets that are segmented behind the queue get the line's overhead once, not for each part: large transfers may take up to %.1f %% more of the line than their rate; \"ip link set dev %[1]s gso_max_segs 1\" ends that for what this machine sends, \"ethtool -K DEV gro off\" for what it forwards from DEV",
		d.Name, float64(sent-counted)/float64(counted)*100)
}

// longWait is what packets should not have to wait for in a branch.
const longWait = 250 * time.Millisecond

// place is where the qdisc of a leaf stands.
func place(b *hierarchy.Branch, mtu, packet hierarchy.Size) qdisc.Site {
	return qdisc.Site{Rate: b.Rate, Ceil: b.Ceil, MTU: mtu, Packet: packet}
}

func (d *Device) waiting(t *hierarchy.Tree) string {
	mtu, packet := d.link.Frame(), d.packet
	if t.MTU != 0 {
		mtu, packet = t.MTU, t.MTU
	}
	var worst *hierarchy.Branch
	longest, also := time.Duration(0), -1
	for b := range t.All() {
		if !b.Leaf() {
			continue
		}
		wait := sendTime(max(qdisc.Full(b.Qdisc, place(b, mtu, packet)), packet), b.Ceil)
		if wait > longWait {
			also++
		}
		if wait > longest {
			worst, longest = b, wait
		}
	}
	if longest <= longWait {
		return ""
	}
	name := string(worst.Path)
	if also > 0 {
		name += fmt.Sprintf(" (and %d more)", also)
	}
	text := fmt.Sprintf("%s: packets may wait %v there at ceil %v", name, roundWait(longest), worst.Ceil)
	fix, size := []string{}, max(qdisc.Full(worst.Qdisc, place(worst, mtu, packet)), packet)
	if packet > mtu {
		size = mtu
		if worst.Qdisc.Kind == "bfifo" && qdisc.Full(worst.Qdisc, place(worst, mtu, packet)) > 0 {
			size = place(worst, mtu, mtu).QueueBytes()
		}
		fix = append(fix, fmt.Sprintf("\"ip link set dev %s gso_max_segs 1\" before the next apply makes it %v", d.Name, roundWait(sendTime(size, worst.Ceil))))
	}
	if worst.Qdisc.Kind == "bfifo" && sendTime(size, worst.Ceil) > longWait {
		limit := max(rtnl.BytesIn(uint64(longWait), worst.Ceil), 2*mtu)
		fix = append(fix, fmt.Sprintf("qdisc = { kind = \"bfifo\", limit = \"%db\" } for it then %v", limit, roundWait(sendTime(limit, worst.Ceil))))
	}
	if len(fix) == 0 {
		return text
	}
	return text + "; " + strings.Join(fix, ", ")
}

// sendTime is how long size takes at rate.
func sendTime(size hierarchy.Size, rate hierarchy.Bandwidth) time.Duration {
	return time.Duration(min(rtnl.Scale(uint64(size), uint64(time.Second), rtnl.BytesPerSecond(rate)), math.MaxInt64))
}

func roundWait(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

// settleClass rounds a class and fills its bursts, cburst with more bytes than its
// ceil asks for.
func settleClass(c *hierarchy.Class, more hierarchy.Size) error {
	c.Rate, c.Ceil = c.Rate.Kernel(), c.Ceil.Kernel()
	if c.Burst == 0 {
		c.Burst = qdisc.Burst(c.Rate, 0)
	}
	if c.CBurst == 0 {
		c.CBurst = qdisc.Burst(c.Ceil, more)
	}
	var err, cerr error
	if c.Burst, err = rtnl.RoundTicks(c.Burst, c.Rate); err != nil {
		return fmt.Errorf("burst %w", err)
	}
	if c.CBurst, cerr = rtnl.RoundTicks(c.CBurst, c.Ceil); cerr != nil {
		return fmt.Errorf("cburst %w", cerr)
	}
	return nil
}
