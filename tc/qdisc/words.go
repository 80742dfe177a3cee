//go:build linux

package qdisc

import (
	"fmt"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
)

// Arguments are a queueing discipline as tc takes it.
func Arguments(q hierarchy.Qdisc) string {
	w := []string{q.Kind}
	d := kindNamed(q.Kind)
	if d == nil {
		return q.Kind
	}
	for _, x := range q.Params {
		p := d.Param(x.Name)
		var own []string
		if d.words != nil {
			own = d.words(q, x)
		}
		switch {
		case p == nil:
		case own != nil:
			w = append(w, own...)
		case p.Type == hierarchy.Flag && x.Value == 0:
			if p.Negative != "" {
				w = append(w, p.Negative)
			}
		case p.Type == hierarchy.Flag:
			w = append(w, x.Name)
		case p.Type == hierarchy.Bytes:
			w = append(w, x.Name, fmt.Sprint(x.Value))
		case p.Type == hierarchy.Duration:
			w = append(w, x.Name, duration(x.Value))
		case p.Type == hierarchy.Numbers:
			w = append(append(w, x.Name), strings.Fields(p.Format(x.Value))...)
		default:
			w = append(w, x.Name, p.Format(x.Value))
		}
	}
	return strings.Join(w, " ")
}

// duration is a number of nanoseconds as tc takes it: most of its times are whole
// microseconds.
func duration(ns uint64) string {
	if ns%1000 == 0 {
		return fmt.Sprintf("%dus", ns/1000)
	}
	return fmt.Sprintf("%dns", ns)
}
