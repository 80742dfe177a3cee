package main

import (
	"fmt"
	"io"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
)

// writeTC prints a plan as the commands of iproute2 that do the same. What tc
// cannot do, the bindings, is printed as comments.
func writeTC(w io.Writer, p hierarchy.Plan) error {
	for _, s := range p.Steps {
		for _, c := range tc.Commands(p.Device, s) {
			if _, err := fmt.Fprintln(w, c); err != nil {
				return err
			}
		}
	}
	return nil
}
