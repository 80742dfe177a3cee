//go:build linux

package tc

import (
	"math"

	"github.com/vifshape/vifshape/hierarchy"
)

var pfifoHeadDrop = discipline{
	Kind: hierarchy.Kind{
		Name: "pfifo_head_drop",
		Help: "one queue, limited by the number of packets, that drops its oldest when it is full",
		Params: []hierarchy.Param{
			{Name: "limit", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
				Help: "packets that may wait; what segmentation offload keeps together counts as one"},
		},
	},
	module: "sch_fifo",
	settle: pfifo.settle,
	encode: encodeFIFO,
	decode: decodeFIFO,
}
