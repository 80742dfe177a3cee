//go:build linux

package qdisc

import "github.com/vifshape/vifshape/hierarchy"

var pfifoHeadDrop = discipline{
	Kind: hierarchy.Kind{
		Name:   "pfifo_head_drop",
		Help:   "one queue, limited by the number of packets, that drops its oldest when it is full",
		Params: []hierarchy.Param{limitPackets},
	},
	module: "sch_fifo",
	settle: pfifo.settle,
	encode: encodeFIFO,
	decode: decodeFIFO,
}
