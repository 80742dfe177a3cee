//go:build linux

package qdisc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Random early detection, as red, choke and sfq have it. Its user gives min, max,
// the size of a packet, a burst and a bandwidth; the kernel is given, and shows,
// two logarithms that follow from them: ewma, the weight of the past in the
// average of the queue, and scell_log, the step of a table of how the average of
// an empty queue fades. So those two are settled, and the words that they come
// from are ways to give them. The reckoning is that of iproute2 (tc/tc_red.c,
// v6.1), to come to the same numbers.

// Flags of struct tc_red_qopt.
const (
	redECN = 1 << iota
	redHardDrop
	redAdaptive
	redNoDrop
)

const (
	// redMax keeps max within the 31 bits that it has together with ewma
	// (red_check_params, include/net/red.h, v6.12).
	redMax = 1<<30 - 1
	// redProbability is 2 %.
	redProbability = (hierarchy.Whole*2 + 50) / 100
	// redPacket is the size of a packet where nothing is said.
	redPacket = 1000
)

// redThresholds are what all of the family have settled: bytes, or packets.
type redThresholds struct{ min, max, ewma uint64 }

func (t redThresholds) set(p *settings) {
	p.set("min", t.min)
	p.set("max", t.max)
	p.set("ewma", t.ewma)
}

// redQueue is a queue with settled thresholds, which count packets where packet
// is 1.
type redQueue struct {
	redThresholds
	packet uint64 // a packet of avpkt, as the thresholds count it
	avpkt  uint64 // bytes
}

// verifyRED checks the parameters of the family against each other. The limit is
// called limitName, the thresholds are of the type unit.
func verifyRED(q hierarchy.Qdisc, limitName string, unit hierarchy.ParamType) error {
	format := func(name string) string {
		v, _ := q.Get(name)
		return name + " " + (&hierarchy.Param{Type: unit}).Format(v)
	}
	least, hasMin := q.Get("min")
	most, hasMax := q.Get("max")
	limit, hasLimit := q.Get(limitName)
	has := func(name string) bool {
		_, ok := q.Get(name)
		return ok
	}
	on := func(name string) bool {
		v, _ := q.Get(name)
		return v != 0
	}
	switch {
	case hasMin && hasMax && least >= most:
		return fmt.Errorf("%s is not below %s", format("min"), format("max"))
	case hasMax && hasLimit && most > limit:
		return fmt.Errorf("%s is above %s", format("max"), format(limitName))
	case hasMin && hasLimit && least >= limit:
		return fmt.Errorf("%s is not below %s", format("min"), format(limitName))
	case has("burst") && has("ewma"):
		return errors.New("burst and ewma say the same thing: give one of them")
	case has("bandwidth") && has("scell_log"):
		return errors.New("bandwidth and scell_log say the same thing: give one of them")
	case on("harddrop") && !on("ecn"):
		return errors.New("harddrop is about packets that ecn would mark: give ecn = true too")
	case on("nodrop") && !on("ecn"):
		return errors.New("nodrop is about packets that ecn cannot mark: give ecn = true too")
	case on("adaptive") && on("nodrop"):
		return errors.New("the kernel does not adapt together with nodrop: give one of them")
	case on("adaptive") && has("probability"):
		return errors.New("adaptive finds the probability by itself: leave one of them out")
	}
	return nil
}

// settleRED works out the thresholds. usual is the max where nothing is said;
// counted says that they are packets, not bytes.
func settleRED(q hierarchy.Qdisc, limitName string, usual, avpkt uint64, counted bool) (r redQueue, limit uint64, err error) {
	r.avpkt, r.packet = avpkt, avpkt
	bound, room := uint64(redMax), uint64(math.MaxUint32)
	if counted {
		r.packet, bound, room = 1, chokeLimit, chokeLimit
	}
	limit, hasLimit := q.Get(limitName)
	least, hasMin := q.Get("min")
	most, hasMax := q.Get("max")
	switch {
	case hasMax:
	case hasMin && hasLimit:
		most = min(3*least, limit)
	case hasMin:
		most = 3 * least
	case hasLimit:
		most = limit / 4
	default:
		most = usual
	}
	most = min(most, bound)
	if !hasMin {
		least = max(most/3, 1)
	}
	if !hasLimit {
		limit = min(4*most, room)
	}
	r.min, r.max = least, most
	if least >= most {
		return r, 0, fmt.Errorf("min %d is not below max %d: give a larger %s", least, most, limitName)
	}

	// The kernel's sums have 31 bits for max and ewma together.
	longest := uint64(31 - bits.Len64(most))
	if ewma, ok := q.Get("ewma"); ok {
		if ewma > longest {
			return r, 0, fmt.Errorf("ewma %d is more than the kernel can count with: at most %d", ewma, longest)
		}
		r.ewma = ewma
		return r, limit, nil
	}
	start := float64(least) / float64(r.packet)
	burst, hasBurst := q.Get("burst")
	if !hasBurst {
		burst = max((2*least+most)/(3*r.packet), uint64(start)+1)
	}
	if float64(burst)+1-start < 1 {
		return r, 0, fmt.Errorf("burst %d is less than the packets that fit below min: at least %d", burst, uint64(math.Ceil(start)))
	}
	r.ewma = redEWMA(start, burst)
	if r.ewma > longest {
		if hasBurst {
			return r, 0, fmt.Errorf("burst %d makes ewma %d, more than the kernel can count with: at most %d", burst, r.ewma, longest)
		}
		r.ewma = longest
	}
	return r, limit, nil
}

// settleQueue settles what red and choke have alike, up to scell_log. avpkt is for
// where nothing is said, as usual.
func settleQueue(p *settings, s Site, usual, avpkt uint64, counted bool) error {
	r, limit, err := settleRED(p.q, "limit", usual, p.get("avpkt", avpkt), counted)
	if err != nil {
		return err
	}
	p.set("limit", limit)
	r.set(p)
	p.set("scell_log", p.get("scell_log", r.cell(hierarchy.Bandwidth(p.get("bandwidth", uint64(s.Ceil))))))
	return nil
}

// redEWMA is the smallest weight with which a burst gets through an empty queue
// whose min is start packets: burst + 1 - start <= (1 - (1-W)^burst) / W for W =
// 2^-ewma. Above 31 there is none.
func redEWMA(start float64, burst uint64) uint64 {
	a := float64(burst) + 1 - start
	w := 0.5
	for ewma := uint64(1); ewma < 32; ewma++ {
		if a <= (1-math.Pow(1-w, float64(burst)))/w {
			return ewma
		}
		w /= 2
	}
	return 32
}

// redBurst is a burst of which redEWMA makes ewma, in the middle of all those
// that there are.
func redBurst(start float64, ewma uint64) uint64 {
	// above is the smallest burst with a larger weight than that.
	above := func(ewma uint64) uint64 {
		lo, hi := uint64(math.Ceil(start)), uint64(1)<<32
		for lo < hi {
			mid := (lo + hi) / 2
			if redEWMA(start, mid) > ewma {
				hi = mid
			} else {
				lo = mid + 1
			}
		}
		return lo
	}
	first, last := max(above(ewma-1), 1), above(ewma)-1
	return min((first+max(last, first))/2, math.MaxUint32)
}

// fading is 31 halvings of the average, in packets that could have been sent.
func (r *redQueue) fading() float64 {
	return 31 / -math.Log(1-1/float64(uint64(1)<<r.ewma))
}

// redCells is the number of cells of the table of fading. The kernel looks into
// it by the microseconds of idleness, but tc reckons in ticks of 64 ns, so that
// the average fades 15 times more slowly than was meant; every table that is in
// use is of that kind.
const redCells = 512

// cell is the scell_log for a bandwidth: the smallest step with which the table
// reaches over the fading.
func (r *redQueue) cell(bandwidth hierarchy.Bandwidth) uint64 {
	us := math.Floor(1e6 * float64(r.avpkt) / float64(max(rtnl.BytesPerSecond(bandwidth), 1)))
	span := r.fading() * math.Floor(us*ticksPerMicro)
	for c := range uint64(31) {
		if span/float64(uint64(1)<<c) < redCells {
			return c
		}
	}
	return 31
}

const ticksPerMicro = 1000. / rtnl.Tick

// bandwidthOf is a bandwidth of which cell makes scell_log.
func (r *redQueue) bandwidthOf(cell uint64) hierarchy.Bandwidth {
	us := 0.
	if cell > 0 {
		step := float64(uint64(1)<<cell) / r.fading() / ticksPerMicro
		first, last := math.Ceil(redCells/2*step), math.Floor(redCells*step)
		us = first + math.Floor((last-first)/2)
	}
	return hierarchy.Bandwidth(max(1e6*float64(r.avpkt)/(us+0.5), 1)) * 8
}

// redTable is the table. The kernel does not show it. Of all that have the same
// step it is the one in the middle: how fast the average fades is off by the root
// of 2 at most.
func redTable() (t [256]byte) {
	const span = redCells / math.Sqrt2
	for i := range t {
		t[i] = byte(min(31, math.Floor(31/span*float64(i))))
	}
	t[255] = 31
	return t
}

// sizeofRED is the size of struct tc_red_qopt.
const sizeofRED = 16

// encode writes struct tc_red_qopt, which is also a part of struct tc_sfq_qopt_v1.
func (r *redQueue) encode(e *rtnl.Encoder, limit, probability, cell uint64, flags uint8) {
	e.Uint32(uint32(limit))
	e.Uint32(uint32(r.min))
	e.Uint32(uint32(r.max))
	e.Uint8(uint8(r.ewma))
	// Without a use in the kernel beside max_P, but it is shown.
	plog, p := uint8(0), redFraction(probability)/float64((r.max-r.min)*(r.avpkt/r.packet))
	for ; plog < 31 && p <= 1; plog++ {
		p *= 2
	}
	e.Uint8(plog)
	e.Uint8(uint8(cell))
	e.Uint8(flags)
}

// redParms is struct tc_red_qopt as it is shown.
type redParms struct {
	redThresholds
	limit, cell, flags uint64
}

// queue are the parameters that red and choke have alike, up to scell_log.
func (r *redParms) queue() (p settings) {
	p.set("limit", r.limit)
	r.set(&p)
	p.set("scell_log", r.cell)
	return p
}

func decodeRED(b []byte) (p redParms, err error) {
	if len(b) < sizeofRED {
		return p, rtnl.ErrMalformed
	}
	u := func(i int) uint64 { return uint64(binary.NativeEndian.Uint32(b[i:])) }
	return redParms{redThresholds{u(4), u(8), uint64(b[12])}, u(0), uint64(b[14]), uint64(b[15])}, nil
}

// redFraction is a probability as a fraction: of 2^32, as iproute2 has it.
func redFraction(v uint64) float64 { return float64(v) / (1 << 32) }

// redOf are the settled thresholds in q.
func redOf(q hierarchy.Qdisc, counted bool) (r redQueue, err error) {
	v, err := values(q, "min", "max", "ewma")
	if err != nil {
		return r, err
	}
	r = redQueue{redThresholds: redThresholds{v[0], v[1], v[2]}}
	if counted {
		r.packet, r.avpkt = 1, redPacket
	} else { // small enough for every ewma to have its burst
		r.avpkt = max(min(r.min/8, redPacket), 1)
		r.packet = r.avpkt
	}
	return r, nil
}

// redWords are settled parameters as tc takes them: by those that they come from.
func redWords(q hierarchy.Qdisc, s hierarchy.Setting, counted bool) []string {
	r, err := redOf(q, counted)
	if err != nil {
		return nil
	}
	switch s.Name {
	case "ewma":
		burst := redBurst(float64(r.min)/float64(r.packet), r.ewma)
		return []string{"avpkt", strconv.FormatUint(r.avpkt, 10), "burst", strconv.FormatUint(burst, 10)}
	case "scell_log":
		return []string{"bandwidth", fmt.Sprintf("%dbit", uint64(r.bandwidthOf(s.Value)))}
	case "probability":
		return []string{s.Name, strconv.FormatFloat(redFraction(s.Value), 'g', -1, 64)}
	}
	return nil
}

// Parameters that the members of the family share.
var (
	redBurstParam = hierarchy.Param{Name: "burst", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
		Help: "packets that an empty queue takes at once; another way to give ewma"}
	redEWMAParam = hierarchy.Param{Name: "ewma", Type: hierarchy.Count, Min: 1, Max: 30,
		Help: "the length now counts for 2 to the power of -ewma in the average"}
	redProbabilityParam = hierarchy.Param{Name: "probability", Type: hierarchy.Percent, Min: 1, Max: hierarchy.Whole,
		Help: "probability of a drop or mark when the average comes to max"}
	redECNParam = hierarchy.Param{Name: "ecn", Type: hierarchy.Flag, Max: 1,
		Help: "mark packets that allow it and do not drop them"}
	redHardDropParam = hierarchy.Param{Name: "harddrop", Type: hierarchy.Flag, Max: 1,
		Help: "above max drop also what could be marked"}
)

// redParams are the parameters that red and choke have alike, in a unit: limit and
// most are the largest limit and the largest max.
func redParams(unit hierarchy.ParamType, units string, limit, most uint64) []hierarchy.Param {
	return []hierarchy.Param{
		{Name: "limit", Type: unit, Min: 4, Max: limit,
			Help: units + " that may wait, more than max"},
		{Name: "min", Type: unit, Min: 1, Max: most,
			Help: "average length below which nothing is dropped"},
		{Name: "max", Type: unit, Min: 2, Max: most,
			Help: "average length above which everything is dropped or marked"},
		{Name: "avpkt", Type: hierarchy.Bytes, Min: 1, Max: 1 << 20,
			Help: "size of a usual packet, for working out ewma and scell_log"},
		redBurstParam,
		{Name: "bandwidth", Type: hierarchy.Rate, Min: 8, Max: uint64(hierarchy.MaxBandwidth),
			Help: "rate at which an idle queue would be emptied; another way to give scell_log"},
		redEWMAParam,
		{Name: "scell_log", Type: hierarchy.Count, Max: 31,
			Help: "the average of an idle queue fades within 362us times 2 to the power of scell_log"},
		redProbabilityParam, redECNParam,
	}
}

// Attributes of red and choke in linux/pkt_sched.h.
const (
	redParmsAttr = iota + 1
	redTableAttr
	redMaxPAttr
	redFlagsAttr // of red alone
	redEarlyDropBlock
	redMarkBlock
)

// encodeREDAttrs writes what red and choke have alike.
func encodeREDAttrs(e *rtnl.Encoder, q hierarchy.Qdisc, counted bool, flags uint8) error {
	r, err := redOf(q, counted)
	if err != nil {
		return err
	}
	v, err := values(q, "limit", "scell_log")
	if err != nil {
		return err
	}
	probability, ok := q.Get("probability")
	if !ok {
		probability = redProbability // to begin with
	}
	e.Attr(redParmsAttr, func() { r.encode(e, v[0], probability, v[1], flags) })
	e.Attr(redTableAttr, func() {
		t := redTable()
		e.B = append(e.B, t[:]...)
	})
	e.Attr32(redMaxPAttr, uint32(probability))
	return nil
}

// flag is bit where q has the flag switched on.
func flag(q hierarchy.Qdisc, name string, bit uint8) uint8 {
	if v, _ := q.Get(name); v != 0 {
		return bit
	}
	return 0
}

// redAttrs is what only red has.
type redAttrs struct {
	hasFlags bool
	flags    uint32
	events   bool // filters are bound to its drops or marks
}

// decodeREDAttrs reads what red and choke have alike.
func decodeREDAttrs(opts []byte) (p redParms, probability uint64, a redAttrs, err error) {
	var parms []byte
	err = rtnl.EachAttr(opts, func(typ uint16, b []byte) (err error) {
		var v uint32
		switch typ {
		case redParmsAttr:
			parms = b
		case redMaxPAttr:
			v, err = rtnl.Uint32(b)
			probability = uint64(v)
		case redFlagsAttr:
			a.hasFlags = true
			a.flags, err = rtnl.Uint32(b)
		case redEarlyDropBlock, redMarkBlock:
			v, err = rtnl.Uint32(b)
			a.events = a.events || v != 0
		}
		return err
	})
	if err != nil {
		return p, 0, a, err
	}
	p, err = decodeRED(parms)
	return p, probability, a, err
}
