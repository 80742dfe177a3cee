//go:build linux

package qdisc

import (
	"encoding/binary"
	"errors"
	"math"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Attributes of cake in linux/pkt_sched.h.
const (
	cakeRate64 = iota + 2
	cakeDiffserv
	cakeATM
	cakeFlowMode
	cakeOverhead
	cakeRTT
	cakeTarget
	cakeAutorate
	cakeMemory
	cakeNAT
	cakeRaw
	cakeWash
	cakeMPU
	cakeIngress
	cakeAckFilter
	cakeSplitGSO
	cakeFwmark
)

// cakeWords are the choices of a parameter in the order of the kernel's numbers.
// To tc each says for itself which parameter it is of.
func cakeWords(param string) []string {
	switch param {
	case "diffserv":
		return []string{"diffserv3", "diffserv4", "diffserv8", "besteffort", "precedence"}
	case "flowmode":
		return []string{"flowblind", "srchost", "dsthost", "hosts", "flows", "dual-srchost", "dual-dsthost", "triple-isolate"}
	case "ack-filter":
		return []string{"no-ack-filter", "ack-filter", "ack-filter-aggressive"}
	case "atm":
		return []string{"noatm", "atm", "ptm"}
	}
	return nil
}

// cakeRTTs are the round trips that tc's manual has names for.
func cakeRTTs() []hierarchy.Setting {
	return []hierarchy.Setting{
		{Name: "datacentre", Value: uint64(100 * time.Microsecond)}, {Name: "lan", Value: uint64(time.Millisecond)},
		{Name: "metro", Value: uint64(10 * time.Millisecond)}, {Name: "regional", Value: uint64(30 * time.Millisecond)},
		{Name: "internet", Value: uint64(100 * time.Millisecond)}, {Name: "oceanic", Value: uint64(300 * time.Millisecond)},
		{Name: "satellite", Value: uint64(time.Second)}, {Name: "interplanetary", Value: uint64(1000 * time.Second)},
	}
}

var cake = discipline{
	Kind: hierarchy.Kind{
		Name: "cake",
		Help: "fair queues for hosts and their flows, in classes by DSCP, each kept short",
		Params: []hierarchy.Param{
			{Name: "bandwidth", Type: hierarchy.Rate, Min: 512, Max: uint64(hierarchy.MaxBandwidth),
				Help: "bandwidth below that of the branch; without it the branch alone limits, and the DSCP classes have no shares"},
			{Name: "autorate-ingress", Type: hierarchy.Flag, Max: 1,
				Help: "work the bandwidth out from what arrives"},
			{Name: "rtt", Type: hierarchy.Duration, Min: 1000, Max: uint64(time.Hour), Names: cakeRTTs(),
				Help: "a usual round trip, which says how soon to drop"},
			{Name: "diffserv", Type: hierarchy.Choice, Max: 4, Choices: cakeWords("diffserv"),
				Help: "classes that packets are sorted into by their DSCP"},
			{Name: "flowmode", Type: hierarchy.Choice, Max: 7, Choices: cakeWords("flowmode"),
				Help: "whom to be fair to"},
			{Name: "nat", Type: hierarchy.Flag, Max: 1, Negative: "nonat",
				Help: "look hosts up behind the address translation of this machine"},
			{Name: "wash", Type: hierarchy.Flag, Max: 1, Negative: "nowash",
				Help: "clear the DSCP of what is sent"},
			{Name: "ack-filter", Type: hierarchy.Choice, Max: 2, Choices: cakeWords("ack-filter"),
				Help: "drop acknowledgements that a later one in the queue repeats"},
			{Name: "split-gso", Type: hierarchy.Flag, Max: 1, Negative: "no-split-gso",
				Help: "cut large packets of the stack into those on the line"},
			{Name: "raw", Type: hierarchy.Flag, Max: 1,
				Help: "count packets as the kernel does; the default without overhead"},
			{Name: "overhead", Type: hierarchy.Signed, Min: 1<<64 - 64, Max: 256,
				Help: "bytes that the line adds to each IP packet, or with raw to each packet"},
			{Name: "mpu", Type: hierarchy.Bytes, Max: 256,
				Help: "bytes that a packet counts as at least"},
			{Name: "atm", Type: hierarchy.Choice, Max: 2, Choices: cakeWords("atm"),
				Help: "what the line makes of a packet: ATM cells, PTM coding"},
			{Name: "memlimit", Type: hierarchy.Bytes, Min: 1, Max: math.MaxUint32,
				Help: "bytes of memory that waiting packets may take"},
			{Name: "ingress", Type: hierarchy.Flag, Max: 1, Negative: "egress",
				Help: "count dropped packets, too: they have come over the line"},
			{Name: "fwmark", Type: hierarchy.Count, Max: math.MaxUint32,
				Help: "bits of the firewall's mark that choose the class, 0 for none"},
		},
		Verify: func(q hierarchy.Qdisc) error {
			_, bandwidth := q.Get("bandwidth")
			autorate, _ := q.Get("autorate-ingress")
			if bandwidth && autorate != 0 {
				return errors.New("autorate-ingress works the bandwidth out: give one of them")
			}
			return nil
		},
	},
	module: "sch_cake",
	marks:  cakeMarks,
	settle: func(q hierarchy.Qdisc, _ Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		if v := p.get("bandwidth", 0); v != 0 {
			p.set("bandwidth", uint64(hierarchy.Bandwidth(v).Kernel()))
		}
		p.set("autorate-ingress", p.get("autorate-ingress", 0))
		p.set("rtt", p.get("rtt", uint64(100*time.Millisecond))/1000*1000)
		p.set("diffserv", p.get("diffserv", 0))
		p.set("flowmode", p.get("flowmode", 7))
		p.set("nat", p.get("nat", 0))
		p.set("wash", p.get("wash", 0))
		p.set("ack-filter", p.get("ack-filter", 0))
		p.set("split-gso", p.get("split-gso", 1))
		raw := uint64(1)
		if _, ok := q.Get("overhead"); ok {
			raw = 0
		}
		p.set("raw", p.get("raw", raw))
		p.set("overhead", p.get("overhead", 0))
		p.set("mpu", p.get("mpu", 0))
		p.set("atm", p.get("atm", 0))
		if v := p.get("memlimit", 0); v != 0 {
			p.set("memlimit", v)
		}
		p.set("ingress", p.get("ingress", 0))
		p.set("fwmark", p.get("fwmark", 0))
		return p.out, nil
	},
	encode: func(e *rtnl.Encoder, q hierarchy.Qdisc, _ bool) error {
		v, err := values(q, "autorate-ingress", "rtt", "diffserv", "flowmode", "wash", "ack-filter", "split-gso", "overhead", "mpu", "atm", "ingress", "fwmark")
		if err != nil {
			return err
		}
		if v[0] == 0 { // otherwise cake knows better
			bandwidth, _ := q.Get("bandwidth")
			e.Attr64(cakeRate64, bandwidth/8)
		}
		e.Attr32(cakeAutorate, uint32(v[0]))
		rtt := micro(v[1])
		e.Attr32(cakeRTT, rtt)
		e.Attr32(cakeTarget, cakeTargetOf(rtt))
		e.Attr32(cakeDiffserv, uint32(v[2]))
		e.Attr32(cakeFlowMode, uint32(v[3]))
		if nat, _ := q.Get("nat"); nat != 0 { // refused by kernels without connection tracking, even if it is 0
			e.Attr32(cakeNAT, 1)
		}
		e.Attr32(cakeWash, uint32(v[4]))
		e.Attr32(cakeAckFilter, uint32(v[5]))
		e.Attr32(cakeSplitGSO, uint32(v[6]))
		e.Attr32(cakeOverhead, uint32(v[7]))
		if raw, _ := q.Get("raw"); raw != 0 { // takes back what overhead says, but its number
			e.Attr32(cakeRaw, 0)
		}
		e.Attr32(cakeMPU, uint32(v[8]))
		e.Attr32(cakeATM, uint32(v[9]))
		memory, _ := q.Get("memlimit")
		e.Attr32(cakeMemory, uint32(memory))
		e.Attr32(cakeIngress, uint32(v[10]))
		e.Attr32(cakeFwmark, uint32(v[11]))
		return nil
	},
	decode: func(opts []byte) ([]hierarchy.Setting, error) {
		var v [cakeFwmark + 1]uint32
		var rate uint64
		err := rtnl.EachAttr(opts, func(typ uint16, b []byte) (err error) {
			switch {
			case typ == cakeRate64:
				rate, err = rtnl.Uint64(b)
			case typ == cakeRaw:
				v[typ] = 1
			case typ > cakeRate64 && int(typ) < len(v):
				v[typ], err = rtnl.Uint32(b)
			}
			return err
		})
		if err != nil || rate > rtnl.MaxRate {
			return nil, rtnl.ErrMalformed
		}
		if v[cakeTarget] != cakeTargetOf(v[cakeRTT]) {
			return nil, nil // set by another hand: no parameter says so
		}
		p := settings{}
		if rate != 0 && v[cakeAutorate] == 0 {
			p.set("bandwidth", rate*8)
		}
		p.set("autorate-ingress", uint64(v[cakeAutorate]))
		p.set("rtt", 1000*uint64(v[cakeRTT]))
		p.set("diffserv", uint64(v[cakeDiffserv]))
		p.set("flowmode", uint64(v[cakeFlowMode]))
		p.set("nat", uint64(v[cakeNAT]))
		p.set("wash", uint64(v[cakeWash]))
		p.set("ack-filter", uint64(v[cakeAckFilter]))
		p.set("split-gso", uint64(v[cakeSplitGSO]))
		p.set("raw", uint64(v[cakeRaw]))
		p.set("overhead", uint64(int64(int32(v[cakeOverhead]))))
		p.set("mpu", uint64(v[cakeMPU]))
		p.set("atm", uint64(v[cakeATM]))
		if v[cakeMemory] != 0 {
			p.set("memlimit", uint64(v[cakeMemory]))
		}
		p.set("ingress", uint64(v[cakeIngress]))
		p.set("fwmark", uint64(v[cakeFwmark]))
		return p.out, nil
	},
	// See encode: nat cannot be taken back everywhere.
	inPlace: func(old, want hierarchy.Qdisc) bool {
		was, _ := old.Get("nat")
		is, _ := want.Get("nat")
		return was <= is
	},
	words: func(q hierarchy.Qdisc, s hierarchy.Setting) []string {
		switch s.Name {
		case "autorate-ingress":
			if _, ok := q.Get("bandwidth"); s.Value == 0 && !ok {
				return []string{"unlimited"}
			}
		case "diffserv", "flowmode", "ack-filter", "atm":
			if words := cakeWords(s.Name); s.Value < uint64(len(words)) {
				return words[s.Value : s.Value+1]
			}
		case "mpu", "fwmark":
			if s.Value == 0 {
				return []string{}
			}
		}
		return nil
	},
}

// cakeTargetOf is the time in microseconds that packets may wait on the whole
// for a round trip, as tc has it (cake_parse_opt, tc/q_cake.c, iproute2 6.1).
func cakeTargetOf(rtt uint32) uint32 { return max(rtt/20, 1) }

// Attributes of cake's statistics: a list of its tins, and what each has marked.
const (
	cakeTins      = 10
	cakeTinMarked = 8
)

// cakeMarks are those of all tins.
func cakeMarks(stats []byte) (n uint64, err error) {
	err = rtnl.EachAttr(stats, func(typ uint16, tins []byte) error {
		if typ != cakeTins {
			return nil
		}
		return rtnl.EachAttr(tins, func(_ uint16, tin []byte) error {
			return rtnl.EachAttr(tin, func(typ uint16, v []byte) error {
				if typ != cakeTinMarked {
					return nil
				}
				if len(v) < 4 {
					return rtnl.ErrMalformed
				}
				n += uint64(binary.NativeEndian.Uint32(v))
				return nil
			})
		})
	})
	return n, err
}
