//go:build linux

package qdisc

import (
	"encoding/binary"
	"math"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

var pfifo = discipline{
	Kind: hierarchy.Kind{
		Name:   "pfifo",
		Help:   "one queue, limited by the number of packets",
		Params: []hierarchy.Param{limitPackets},
	},
	module: "sch_fifo",
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		p.set("limit", p.get("limit", s.queuePackets()))
		return p.out, nil
	},
	encode: encodeFIFO,
	decode: decodeFIFO,
}

// limitPackets is the one parameter of queues that count packets.
var limitPackets = hierarchy.Param{Name: "limit", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
	Help: "packets that may wait; what segmentation offload keeps together counts as one"}

// encodeFIFO writes struct tc_fifo_qopt of linux/pkt_sched.h.
func encodeFIFO(e *rtnl.Encoder, q hierarchy.Qdisc, _ bool) error {
	limit, err := value(q, "limit")
	e.Uint32(uint32(limit))
	return err
}

func decodeFIFO(opts []byte) ([]hierarchy.Setting, error) {
	if len(opts) < 4 {
		return nil, rtnl.ErrMalformed
	}
	return []hierarchy.Setting{{Name: "limit", Value: uint64(binary.NativeEndian.Uint32(opts))}}, nil
}
