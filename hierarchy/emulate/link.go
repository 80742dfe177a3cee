package emulate

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

// Link is a line between this machine and the others, as a program sees it.
//
// Delay, Jitter and Loss are those of one way, and the same both ways: of a link of
// 100 ms a ping takes 200 ms, and of one that loses 10% a ping comes back in 81 of 100
// cases. The zero value is no link at all.
type Link struct {
	// Up is what it carries of what is sent, Down of what is received, as the rate and
	// the ceil of a branch count. Zero: as much as there is.
	Up   hierarchy.Bandwidth `json:"up,omitzero"`
	Down hierarchy.Bandwidth `json:"down,omitzero"`
	// Delay is what every packet takes at least that waits for no other, one way, up to
	// ten minutes. It comes on top of what the real line takes.
	Delay time.Duration `json:"delay,omitzero"`
	// Jitter is how much more or less than Delay it may be, every value between as
	// likely as another: no more than Delay, and at most two seconds. Packets stay in
	// order all the same, so that of packets close together each takes at least what is
	// left to the one before.
	Jitter time.Duration `json:"jitter,omitzero"`
	// Loss is the share of packets that are lost by chance, independently of each other,
	// in parts of [hierarchy.Whole].
	Loss uint64 `json:"loss,omitzero"`
}

// The bounds of netem's parameters in package tc/qdisc, a test of which compares them.
const (
	maxDelay  = 10 * time.Minute
	maxJitter = 2 * time.Second
)

// Names are what [Link.Set] knows.
func Names() []string { return []string{"delay", "jitter", "loss", "rate", "up", "down"} }

// Set sets one figure of the link to a text as a policy has it: delay and jitter
// ("100ms"), loss ("0.5%"), up and down ("1mbit"), or both of them by rate. It is an
// error that says what to write when the text is not understood or out of bounds.
func (l *Link) Set(name, text string) error {
	p := hierarchy.Param{Name: name}
	switch name {
	case "delay":
		p.Type, p.Max = hierarchy.Duration, uint64(maxDelay)
	case "jitter":
		p.Type, p.Max = hierarchy.Duration, uint64(maxJitter)
	case "loss":
		p.Type = hierarchy.Percent
	case "rate", "up", "down":
		p.Type, p.Min, p.Max = hierarchy.Rate, 8, uint64(hierarchy.MaxBandwidth)
	default:
		return fmt.Errorf("a link has no %s: %s", name, suggest(name, Names()))
	}
	v, err := p.Parse(hierarchy.RawParam{Name: name, Text: text, Quoted: true})
	if err != nil {
		return err
	}
	switch name {
	case "delay":
		l.Delay = time.Duration(v)
	case "jitter":
		l.Jitter = time.Duration(v)
	case "loss":
		l.Loss = v
	}
	if name == "rate" || name == "up" {
		l.Up = hierarchy.Bandwidth(v)
	}
	if name == "rate" || name == "down" {
		l.Down = hierarchy.Bandwidth(v)
	}
	return nil
}

// Check says what is wrong with the figures together.
func (l Link) Check() error {
	switch {
	case l == Link{}:
		return errors.New("a link without a rate, a delay and a loss is none: give one of them")
	case l.Jitter > l.Delay:
		return fmt.Errorf("a jitter of %v takes more than the delay of %v: give a delay of %v or more", l.Jitter, l.Delay, l.Jitter)
	}
	return nil
}

// String is what the link does besides its rates, as flags say it: "delay 100ms loss 0.5%".
func (l Link) String() string {
	var parts []string
	if l.Delay != 0 {
		parts = append(parts, "delay "+l.Delay.String())
	}
	if l.Jitter != 0 {
		parts = append(parts, "jitter "+l.Jitter.String())
	}
	if l.Loss != 0 {
		parts = append(parts, "loss "+(&hierarchy.Param{Type: hierarchy.Percent}).Format(l.Loss))
	}
	return strings.Join(parts, " ")
}

// NeedsNetem says whether a leaf of the link is netem, which not every kernel has.
func (l Link) NeedsNetem() bool { return l.Delay != 0 || l.Jitter != 0 || l.Loss != 0 }

// Rate is what the link carries in a direction, which is the ceil of the branch with
// the leaf; zero where that has no bound.
func (l Link) Rate(d hierarchy.Direction) hierarchy.Bandwidth {
	if d == hierarchy.Receive {
		return l.Down
	}
	return l.Up
}

// Sizes of packets on the wire that [Link.limit] counts with.
const (
	fullPacket  = 1514 // an MTU of 1,500 and the Ethernet header
	smallPacket = 256
)

// What a modem keeps before it loses packets. A cable modem without a queue management
// of its own had 250 ms on average ("Improving Latency with Active Queue Management
// During COVID-19", Comcast 2021). On slow lines that would be a few packets; there it
// is a number of them, about 100 kB.
const (
	modemTime    = 250 * time.Millisecond
	modemPackets = 64
)

// limit is the number of packets that a leaf for the link holds: those that are on
// their way, and those that wait for the line. The queue is thus as long as that of a
// modem which nobody mended.
//
// netem has one number for both, and counts packets, not bytes. Those on their way are
// counted as small ones, so that acknowledgements, calls and games get all of the rate,
// and not only packets of full size. When nothing but those of full size come, up to
// six times the delay, and 250 ms or the time of 64 packets, is what they wait.
func (l Link) limit(rate hierarchy.Bandwidth) uint64 {
	way := packets(rate, l.Delay+l.Jitter, smallPacket)
	wait := max(packets(rate, modemTime, fullPacket), modemPackets)
	return min(way+wait, 1<<32-1)
}

// packets is how many of a size a rate makes of a time, rounded up.
func packets(rate hierarchy.Bandwidth, d time.Duration, size uint64) uint64 {
	hi, lo := bits.Mul64(uint64(rate), uint64(d))
	n, rest := bits.Div64(hi, lo, 8*size*uint64(time.Second)) // MaxBandwidth and maxDelay are far below 2^64 of them
	if rest > 0 {
		n++
	}
	return n
}

// Leaf is the qdisc of a branch that carries one direction of the link. The bandwidth
// is not its own: that of the branch is [Link.Rate]. It is netem where there is a delay
// or a loss, else a plain queue of a modem's length, which every kernel has; nil where
// the link has no bound in that direction, so that the branch keeps what it has.
func (l Link) Leaf(d hierarchy.Direction) *hierarchy.RawQdisc {
	q := &hierarchy.RawQdisc{Kind: "pfifo"}
	add := func(name, text string, quoted bool) {
		q.Params = append(q.Params, hierarchy.RawParam{Name: name, Text: text, Quoted: quoted})
	}
	rate := l.Rate(d)
	if rate == 0 && !l.NeedsNetem() {
		return nil
	}
	if rate != 0 { // else by that of the branch: netem's own default
		add("limit", strconv.FormatUint(l.limit(rate), 10), false)
	}
	if !l.NeedsNetem() {
		return q
	}
	q.Kind = "netem"
	if l.Delay != 0 {
		add("delay", l.Delay.String(), true)
	}
	if l.Jitter != 0 {
		add("jitter", l.Jitter.String(), true)
		// Lines do not change the order of packets. netem does with a jitter, unless it
		// has a rate: then no packet is due before the one that came before it
		// (netem_enqueue, net/sched/sch_netem.c, v4.4 to v6.12). This one takes no time.
		add("rate", hierarchy.MaxBandwidth.String(), true)
	}
	if l.Loss != 0 {
		loss := hierarchy.Param{Type: hierarchy.Percent}
		add("loss", loss.Format(l.Loss), true)
	}
	return q
}

// suggest names the nearest of the known names, and all.
func suggest(name string, known []string) string {
	all := "known are " + strings.Join(known, ", ")
	if n := hierarchy.Nearest(name, known); n != "" {
		return fmt.Sprintf("did you mean %q? %s", n, all)
	}
	return all
}
