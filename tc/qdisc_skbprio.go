//go:build linux

package tc

import (
	"math"

	"github.com/vifshape/vifshape/hierarchy"
)

var skbprio = discipline{
	Kind: hierarchy.Kind{
		Name: "skbprio",
		Help: "one queue that serves packets by the priority of their socket, which a binding overwrites",
		Params: []hierarchy.Param{
			{Name: "limit", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
				Help: "packets that may wait; what segmentation offload keeps together counts as one"},
		},
	},
	module: "sch_skbprio",
	settle: pfifo.settle,
	encode: encodeFIFO, // struct tc_skbprio_qopt is the same
	decode: decodeFIFO,
}
