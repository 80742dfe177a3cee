//go:build linux

package qdisc

import "github.com/vifshape/vifshape/hierarchy"

var skbprio = discipline{
	Kind: hierarchy.Kind{
		Name:   "skbprio",
		Help:   "one queue that serves packets by the priority of their socket, which a binding overwrites",
		Params: []hierarchy.Param{limitPackets},
	},
	module: "sch_skbprio",
	settle: pfifo.settle,
	encode: encodeFIFO, // struct tc_skbprio_qopt is the same
	decode: decodeFIFO,
}
