//go:build linux

package qdisc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Attributes of netem in linux/pkt_sched.h, behind struct tc_netem_qopt.
const (
	netemCorrelation = iota + 1
	netemDelayDist
	netemReorder
	netemCorrupt
	netemLoss
	netemRate
	netemECN
	netemRate64
	netemPad
	netemLatency64
	netemJitter64
	netemSlot
	netemSlotDist
	netemSeed
)

// Models of loss: the content of the attribute netemLoss, and with random in
// front the choices of loss_model.
const (
	lossRandom = iota
	lossState
	lossGE
)

const (
	sizeofNetem = 24 // struct tc_netem_qopt
	// netemTime is the longest delay: enough for a satellite of another planet's.
	netemTime = 10 * time.Minute
	// netemJitter is within the 2^31-1 ns that netem keeps.
	netemJitter = 2 * time.Second
	// distBits of a jitter say which distribution it has, because the kernel does
	// not show that: jitters are whole multiples of 4 ns, and the distribution's
	// number is added.
	distBits = 2
	// netemSeeds are the seeds on offer. The kernel shows those that it chose
	// itself, too: numbers of 64 bits of which one in four milliards is below.
	netemSeeds = 1 << 32
)

func netemLossModels() []string { return []string{"random", "state", "gemodel"} }

// netemNeeds are parameters and what they say nothing without.
func netemNeeds() [][2]string {
	return [][2]string{
		{"jitter", "delay"}, {"delay_correlation", "jitter"}, {"distribution", "jitter"},
		{"loss_correlation", "loss"}, {"duplicate_correlation", "duplicate"}, {"corrupt_correlation", "corrupt"},
		{"reorder", "delay"}, {"reorder_correlation", "reorder"}, {"gap", "reorder"},
		{"packetoverhead", "rate"}, {"cellsize", "rate"}, {"celloverhead", "cellsize"},
		{"slot_max", "slot_min"}, {"slot_distribution", "slot_jitter"}, {"slot_jitter", "slot_distribution"}, {"slot_delay", "slot_distribution"},
	}
}

// netemModels are the parameters of the models of loss, in the kernel's order,
// by the number of the model.
func netemModels() [][]string {
	return [][]string{lossRandom: {"loss"}, lossState: {"p13", "p31", "p32", "p14", "p23"}, lossGE: {"p", "r", "1-h", "1-k"}}
}

var netem = discipline{
	Kind: hierarchy.Kind{
		Name: "netem",
		Help: "one queue that behaves like a bad line: delays, losses, doubles and disorder",
		Params: []hierarchy.Param{
			{Name: "limit", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
				Help: "packets that may wait, those that are being delayed included"},
			{Name: "delay", Type: hierarchy.Duration, Max: uint64(netemTime),
				Help: "time that every packet waits"},
			{Name: "jitter", Type: hierarchy.Duration, Max: uint64(netemJitter),
				Help: "how much more or less the delay may be"},
			{Name: "delay_correlation", Type: hierarchy.Percent,
				Help: "how much a packet's delay depends on the one before"},
			{Name: "distribution", Type: hierarchy.Choice, Max: distributions - 1, Choices: distributionNames(),
				Help: "how delays spread over the jitter"},
			{Name: "loss_model", Type: hierarchy.Choice, Max: lossGE, Choices: netemLossModels(),
				Help: "how losses follow each other: random (loss), 4 states (p13 ...), Gilbert-Elliott (p ...)"},
			{Name: "loss", Type: hierarchy.Percent,
				Help: "packets that are lost at random"},
			{Name: "loss_correlation", Type: hierarchy.Percent,
				Help: "how much a loss depends on the one before"},
			{Name: "p13", Type: hierarchy.Percent,
				Help: "state: from no loss to losses in a row"},
			{Name: "p31", Type: hierarchy.Percent,
				Help: "state: from losses in a row to no loss, by default all that p13 leaves"},
			{Name: "p32", Type: hierarchy.Percent,
				Help: "state: from losses in a row to a packet received between them"},
			{Name: "p23", Type: hierarchy.Percent,
				Help: "state: from a packet received between losses to losses, 100% by default"},
			{Name: "p14", Type: hierarchy.Percent,
				Help: "state: from no loss to a single loss"},
			{Name: "p", Type: hierarchy.Percent,
				Help: "gemodel: from the good state to the bad"},
			{Name: "r", Type: hierarchy.Percent,
				Help: "gemodel: from the bad state to the good, by default all that p leaves"},
			{Name: "1-h", Type: hierarchy.Percent,
				Help: "gemodel: packets that are lost in the bad state, 100% by default"},
			{Name: "1-k", Type: hierarchy.Percent,
				Help: "gemodel: packets that are lost in the good state"},
			{Name: "ecn", Type: hierarchy.Flag, Max: 1,
				Help: "mark packets that allow it and do not lose them"},
			{Name: "duplicate", Type: hierarchy.Percent,
				Help: "packets that are sent twice; some kernels want no other netem on the interface then"},
			{Name: "duplicate_correlation", Type: hierarchy.Percent,
				Help: "how much a double depends on the one before"},
			{Name: "corrupt", Type: hierarchy.Percent,
				Help: "packets in which a bit is flipped"},
			{Name: "corrupt_correlation", Type: hierarchy.Percent,
				Help: "how much a flipped bit depends on the one before"},
			{Name: "reorder", Type: hierarchy.Percent,
				Help: "packets that are sent at once and so before delayed ones"},
			{Name: "reorder_correlation", Type: hierarchy.Percent,
				Help: "how much a change of order depends on the one before"},
			{Name: "gap", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
				Help: "packets of which only one may be sent at once"},
			{Name: "rate", Type: hierarchy.Rate, Min: 8, Max: uint64(hierarchy.MaxBandwidth),
				Help: "bandwidth, which delays packets by their length"},
			{Name: "packetoverhead", Type: hierarchy.Signed, Min: 1<<64 - 1<<15, Max: 1 << 15,
				Help: "bytes that are added to each packet for rate"},
			{Name: "cellsize", Type: hierarchy.Count, Min: 1, Max: math.MaxUint16,
				Help: "bytes of the cells that packets are cut into for rate"},
			{Name: "celloverhead", Type: hierarchy.Signed, Min: 1<<64 - 1<<15, Max: 1 << 15,
				Help: "bytes that are added to each cell for rate"},
			{Name: "slot_min", Type: hierarchy.Duration, Max: uint64(netemTime),
				Help: "packets are sent in bunches: shortest time between two"},
			{Name: "slot_max", Type: hierarchy.Duration, Max: uint64(netemTime),
				Help: "longest time between two bunches, slot_min by default"},
			{Name: "slot_distribution", Type: hierarchy.Choice, Max: distributions - 2, Choices: distributionNames()[1:],
				Help: "how the times between bunches spread, instead of slot_min and slot_max"},
			{Name: "slot_delay", Type: hierarchy.Duration, Max: uint64(netemTime),
				Help: "usual time between two bunches, with slot_distribution"},
			{Name: "slot_jitter", Type: hierarchy.Duration, Min: 1 << distBits, Max: uint64(netemJitter),
				Help: "how much more or less it may be, with slot_distribution"},
			{Name: "slot_packets", Type: hierarchy.Count, Min: 1, Max: math.MaxInt32 - 1,
				Help: "packets in a bunch, at most"},
			{Name: "slot_bytes", Type: hierarchy.Bytes, Min: 1, Max: math.MaxInt32 - 1,
				Help: "bytes in a bunch, at most"},
			{Name: "seed", Type: hierarchy.Count, Max: netemSeeds - 1,
				Help: "where chance starts, to have the same again (Linux 6.6)"},
		},
		Verify: verifyNetem,
	},
	module:  "sch_netem",
	settle:  settleNetem,
	encode:  encodeNetem,
	decode:  decodeNetem,
	inPlace: netemInPlace,
	words:   netemWords,
}

func verifyNetem(q hierarchy.Qdisc) error {
	has := func(name string) bool {
		_, ok := q.Get(name)
		return ok
	}
	for _, n := range netemNeeds() {
		if has(n[0]) && !has(n[1]) {
			return fmt.Errorf("%s says nothing without %s: give %s, too", n[0], n[1], n[1])
		}
	}
	model, _ := q.Get("loss_model")
	loss := false
	for i, params := range netemModels() {
		for _, name := range params {
			switch {
			case !has(name):
			case uint64(i) != model:
				return fmt.Errorf("%s belongs to loss_model = %q", name, netemLossModels()[i])
			default:
				loss = true
			}
		}
	}
	ecn, _ := q.Get("ecn")
	low, _ := q.Get("slot_min")
	high, hasMax := q.Get("slot_max")
	switch first := netemModels()[model][0]; {
	case model != lossRandom && !has(first):
		return fmt.Errorf("loss_model = %q says nothing without %s: give %s, too", netemLossModels()[model], first, first)
	case ecn != 0 && !loss:
		return errors.New("ecn marks what would be lost: give loss, too")
	case has("slot_min") && has("slot_distribution"):
		return errors.New("slot_min and slot_distribution say the same thing: give one of them")
	case hasMax && high < low:
		return fmt.Errorf("slot_max %v is below slot_min %v", time.Duration(high), time.Duration(low))
	case (has("slot_packets") || has("slot_bytes")) && !has("slot_min") && !has("slot_distribution"):
		return errors.New("slot_packets and slot_bytes say nothing without slot_min: give slot_min, too")
	}
	return nil
}

func settleNetem(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
	p := settings{q: q}
	some := func(names ...string) { // those that are not 0
		for _, name := range names {
			if v := p.get(name, 0); v != 0 {
				p.set(name, v)
			}
		}
	}
	delay := p.get("delay", 0)
	jitter := p.get("jitter", 0) >> distBits << distBits
	p.set("limit", p.get("limit", netemPackets(delay+jitter, s)))
	some("delay")
	if jitter != 0 {
		p.set("jitter", jitter)
		some("delay_correlation", "distribution")
	}
	model := p.get("loss_model", lossRandom)
	some("loss_model")
	switch model {
	case lossState:
		p13 := p.get("p13", 0)
		p.set("p13", p13)
		p.set("p31", p.get("p31", hierarchy.Whole-p13))
		p.set("p32", p.get("p32", 0))
		p.set("p23", p.get("p23", hierarchy.Whole))
		p.set("p14", p.get("p14", 0))
	case lossGE:
		bad := p.get("p", 0)
		p.set("p", bad)
		p.set("r", p.get("r", hierarchy.Whole-bad))
		p.set("1-h", p.get("1-h", hierarchy.Whole))
		p.set("1-k", p.get("1-k", 0))
	default:
		if p.get("loss", 0) != 0 {
			some("loss", "loss_correlation")
		}
	}
	some("ecn")
	for _, name := range []string{"duplicate", "corrupt", "reorder"} {
		if p.get(name, 0) != 0 {
			some(name, name+"_correlation")
		}
	}
	if p.get("reorder", 0) != 0 {
		p.set("gap", p.get("gap", 1))
	}
	if v := p.get("rate", 0); v != 0 {
		p.set("rate", uint64(hierarchy.Bandwidth(v).Kernel()))
		some("packetoverhead", "cellsize", "celloverhead")
	}
	low := p.get("slot_min", 0)
	high := p.get("slot_max", low)
	if dist, ok := q.Get("slot_distribution"); ok {
		p.set("slot_distribution", dist)
		p.set("slot_delay", p.get("slot_delay", 0))
		p.set("slot_jitter", p.get("slot_jitter", 0)>>distBits<<distBits)
		some("slot_packets", "slot_bytes")
	} else if high != 0 {
		p.set("slot_min", low)
		p.set("slot_max", high)
		some("slot_packets", "slot_bytes")
	}
	if seed, ok := q.Get("seed"); ok {
		p.set("seed", seed)
	}
	return p.out, nil
}

// netemPackets is the limit for a delay at a place: twice the packets of full
// size that arrive meanwhile at the branch's ceil, because there are smaller
// ones, too. The 1,000 of tc lose packets of a fast line that nobody asked to
// lose.
func netemPackets(delay uint64, s Site) uint64 {
	return min(max(2*uint64(rtnl.BytesIn(delay+uint64(queueTime), s.Ceil)/s.MTU), 1000), 1<<20)
}

func encodeNetem(e *rtnl.Encoder, q hierarchy.Qdisc, fresh bool) error {
	limit, err := value(q, "limit")
	if err != nil {
		return err
	}
	get := func(name string) uint64 { // 0 where it is not set
		v, _ := q.Get(name)
		return v
	}
	numbers := func(typ uint16, names ...string) {
		e.Attr(typ, func() {
			for _, name := range names {
				e.Uint32(uint32(get(name)))
			}
		})
	}
	table := func(typ uint16, dist uint64) {
		e.Attr(typ, func() {
			for _, v := range distTable(int(dist)) {
				e.Uint16(uint16(v))
			}
		})
	}
	// struct tc_netem_qopt; its times are those of the attributes below
	e.Uint32(0)
	e.Uint32(uint32(limit))
	e.Uint32(uint32(get("loss")))
	e.Uint32(uint32(get("gap")))
	e.Uint32(uint32(get("duplicate")))
	e.Uint32(0)
	dist := get("distribution")
	e.Attr64(netemLatency64, get("delay"))
	e.Attr64(netemJitter64, get("jitter")|dist)
	if dist != distUniform {
		table(netemDelayDist, dist)
	}
	numbers(netemCorrelation, "delay_correlation", "loss_correlation", "duplicate_correlation")
	numbers(netemReorder, "reorder", "reorder_correlation")
	numbers(netemCorrupt, "corrupt", "corrupt_correlation")
	switch model := get("loss_model"); model {
	case lossState:
		e.Nest(netemLoss, func() { numbers(lossState, netemModels()[model]...) })
	case lossGE:
		e.Nest(netemLoss, func() {
			e.Attr(lossGE, func() {
				e.Uint32(uint32(get("p")))
				e.Uint32(uint32(get("r")))
				e.Uint32(hierarchy.Whole - uint32(get("1-h"))) // the kernel has h, but 1-k
				e.Uint32(uint32(get("1-k")))
			})
		})
	}
	e.Attr32(netemECN, uint32(get("ecn")))
	rate := get("rate") / 8
	e.Attr(netemRate, func() {
		e.Uint32(uint32(min(rate, math.MaxUint32)))
		e.Uint32(uint32(get("packetoverhead")))
		e.Uint32(uint32(get("cellsize")))
		e.Uint32(uint32(get("celloverhead")))
	})
	if rate > math.MaxUint32 {
		e.Attr64(netemRate64, rate)
	}
	slotDist, hasDist := q.Get("slot_distribution")
	if _, slots := q.Get("slot_max"); slots || hasDist || !fresh {
		jitter := get("slot_jitter")
		if hasDist {
			jitter |= slotDist + 1
			table(netemSlotDist, slotDist+1)
		}
		e.Attr(netemSlot, func() { // struct tc_netem_slot
			e.Uint64(get("slot_min"))
			e.Uint64(get("slot_max"))
			e.Uint32(uint32(get("slot_packets")))
			e.Uint32(uint32(get("slot_bytes")))
			e.Uint64(get("slot_delay"))
			e.Uint64(jitter)
		})
	}
	if seed, ok := q.Get("seed"); ok {
		e.Attr64(netemSeed, seed)
	}
	return nil
}

func decodeNetem(opts []byte) ([]hierarchy.Setting, error) {
	if len(opts) < sizeofNetem {
		return nil, rtnl.ErrMalformed
	}
	u := func(b []byte, i int) uint64 { return uint64(binary.NativeEndian.Uint32(b[4*i:])) }
	var delay, jitter, rate64 uint64
	seed := uint64(netemSeeds)
	// What is not shown is 0.
	content := map[uint16][]byte{netemCorrelation: make([]byte, 12), netemReorder: make([]byte, 8), netemCorrupt: make([]byte, 8), netemRate: make([]byte, 16), netemSlot: make([]byte, 40), netemECN: make([]byte, 4)}
	var loss []byte
	model := uint16(lossRandom)
	err := rtnl.EachAttr(opts[sizeofNetem:], func(typ uint16, b []byte) (err error) {
		switch typ {
		case netemLatency64:
			delay, err = rtnl.Uint64(b)
		case netemJitter64:
			jitter, err = rtnl.Uint64(b)
		case netemRate64:
			rate64, err = rtnl.Uint64(b)
		case netemSeed:
			seed, err = rtnl.Uint64(b)
		case netemLoss:
			return rtnl.EachAttr(b, func(typ uint16, b []byte) error {
				if typ != lossState && typ != lossGE {
					return nil
				}
				model, loss = typ, b
				if len(b) < 4*len(netemModels()[typ]) {
					return rtnl.ErrMalformed
				}
				return nil
			})
		default:
			if len(b) < len(content[typ]) {
				return rtnl.ErrMalformed
			}
			content[typ] = b
		}
		return err
	})
	rate := max(rate64, u(content[netemRate], 0))
	if err != nil || rate > rtnl.MaxRate {
		return nil, rtnl.ErrMalformed
	}
	p := settings{}
	some := func(name string, v uint64) bool {
		if v != 0 {
			p.set(name, v)
		}
		return v != 0
	}
	// one is a probability and its correlation, which says nothing without it.
	one := func(name string, v, correlation uint64) {
		if some(name, v) {
			some(name+"_correlation", correlation)
		}
	}
	correlation := content[netemCorrelation]
	p.set("limit", u(opts, 1))
	some("delay", delay)
	if some("jitter", jitter>>distBits<<distBits) {
		some("delay_correlation", u(correlation, 0))
		some("distribution", jitter&(1<<distBits-1))
	}
	some("loss_model", uint64(model))
	switch model {
	case lossState:
		for i, name := range []string{"p13", "p31", "p32", "p23", "p14"} {
			p.set(name, u(loss, []int{0, 1, 2, 4, 3}[i]))
		}
	case lossGE:
		p.set("p", u(loss, 0))
		p.set("r", u(loss, 1))
		p.set("1-h", hierarchy.Whole-u(loss, 2))
		p.set("1-k", u(loss, 3))
	default:
		one("loss", u(opts, 2), u(correlation, 1))
	}
	some("ecn", u(content[netemECN], 0))
	one("duplicate", u(opts, 4), u(correlation, 2))
	one("corrupt", u(content[netemCorrupt], 0), u(content[netemCorrupt], 1))
	if gap := u(opts, 3); gap != 0 {
		one("reorder", u(content[netemReorder], 0), u(content[netemReorder], 1))
		p.set("gap", gap)
	}
	signed := func(i int) uint64 { return uint64(int64(int32(u(content[netemRate], i)))) }
	if some("rate", rate*8) {
		some("packetoverhead", signed(1))
		some("cellsize", u(content[netemRate], 2))
		some("celloverhead", signed(3))
	}
	slot := content[netemSlot]
	long := func(i int) uint64 { return binary.NativeEndian.Uint64(slot[8*i:]) }
	slotJitter := long(4)
	dist := slotJitter & (1<<distBits - 1)
	switch {
	case slotJitter != 0 && dist == distUniform:
		return nil, nil // a table of another hand, and none tells which
	case slotJitter != 0:
		p.set("slot_distribution", dist-1)
		p.set("slot_delay", long(3))
		p.set("slot_jitter", slotJitter-dist)
	case long(1) != 0:
		p.set("slot_min", long(0))
		p.set("slot_max", long(1))
	}
	if slotJitter != 0 || long(1) != 0 {
		some("slot_packets", u(slot, 4))
		some("slot_bytes", u(slot, 5))
	}
	if seed < netemSeeds {
		p.set("seed", seed)
	}
	return p.out, nil
}

// netemInPlace: netem has no way to do without a table or a seed once it has one.
func netemInPlace(old, want hierarchy.Qdisc) bool {
	for _, name := range []string{"distribution", "slot_distribution", "seed"} {
		_, was := old.Get(name)
		if _, is := want.Get(name); was && !is {
			return false
		}
	}
	return true
}

// netemWords has to put together what is several parameters in a policy.
func netemWords(q hierarchy.Qdisc, s hierarchy.Setting) []string {
	w := []string{}
	add := func(kind hierarchy.ParamType, names ...string) {
		for _, name := range names {
			v, ok := q.Get(name)
			switch {
			case !ok:
			case kind == hierarchy.Duration:
				w = append(w, duration(v))
			default:
				w = append(w, (&hierarchy.Param{Type: kind}).Format(v))
			}
		}
	}
	switch s.Name {
	case "limit", "ecn", "gap", "seed":
		return nil
	case "distribution":
		w = append(w, s.Name, distributionNames()[s.Value])
	case "delay":
		w = append(w, s.Name)
		add(hierarchy.Duration, s.Name, "jitter")
		add(hierarchy.Percent, "delay_correlation")
	case "loss":
		w = append(w, s.Name, "random")
		add(hierarchy.Percent, s.Name, "loss_correlation")
	case "loss_model":
		w = append(w, "loss", netemLossModels()[s.Value])
		add(hierarchy.Percent, "p13", "p31", "p32", "p23", "p14", "p", "r", "1-h", "1-k")
	case "duplicate", "corrupt", "reorder":
		w = append(w, s.Name)
		add(hierarchy.Percent, s.Name, s.Name+"_correlation")
	case "rate":
		w = append(w, s.Name)
		add(hierarchy.Rate, s.Name)
		for _, name := range []string{"packetoverhead", "cellsize", "celloverhead"} {
			v, _ := q.Get(name)
			w = append(w, fmt.Sprint(int64(v)))
		}
	case "slot_min":
		w = append(w, "slot")
		add(hierarchy.Duration, s.Name, "slot_max")
		w = append(w, netemSlotWords(q)...)
	case "slot_distribution":
		w = append(w, "slot", "distribution", distributionNames()[s.Value+1])
		add(hierarchy.Duration, "slot_delay", "slot_jitter")
		w = append(w, netemSlotWords(q)...)
	}
	return w
}

func netemSlotWords(q hierarchy.Qdisc) (w []string) {
	for _, name := range []string{"packets", "bytes"} {
		if v, ok := q.Get("slot_" + name); ok {
			w = append(w, name, fmt.Sprint(v))
		}
	}
	return w
}
