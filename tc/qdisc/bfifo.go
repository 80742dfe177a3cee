//go:build linux

package qdisc

import (
	"math"

	"github.com/vifshape/vifshape/hierarchy"
)

var bfifo = discipline{
	Kind: hierarchy.Kind{
		Name: "bfifo",
		Help: "one queue, limited by the bytes in it",
		Params: []hierarchy.Param{
			{Name: "limit", Type: hierarchy.Bytes, Min: 1, Max: math.MaxUint32,
				Help: "bytes that may wait; a packet that does not fit is dropped"},
		},
	},
	module: "sch_fifo",
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		p.set("limit", p.get("limit", uint64(s.QueueBytes())))
		return p.out, nil
	},
	encode: encodeFIFO,
	decode: decodeFIFO,
}
