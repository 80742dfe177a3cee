//go:build linux

// Package export writes a tree as others would set it up: as commands of tc, as a script of
// them, or as a file of systemd-networkd. What packets go into which branch, neither can
// say as vifshape does: that stands in comments.
package export

import (
	"fmt"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/link"
)

// steps make a state from nothing: what tc can do of it, and the rest.
func steps(s hierarchy.State) (can, cannot []hierarchy.Step) {
	for _, step := range hierarchy.Diff(hierarchy.State{Device: s.Device}, s).Steps {
		switch step.Item().(type) {
		case *hierarchy.Root, *hierarchy.Class, *hierarchy.Leaf:
			can = append(can, step)
		default:
			cannot = append(cannot, step)
		}
	}
	return can, cannot
}

// TC are the commands of tc that make a state on an interface that has nothing of the
// kind; each a line.
func TC(s hierarchy.State) string {
	var b strings.Builder
	can, cannot := steps(s)
	for _, step := range append(can, cannot...) {
		for _, c := range tc.Commands(s.Device, step) {
			b.WriteString(c + "\n")
		}
	}
	return b.String()
}

// Script is a script for sh that makes a state, whatever stood on the interface before. All
// that is received goes through the rest of the IFB, where there is one: nothing tells it
// apart.
func Script(s hierarchy.State) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	can, cannot := steps(s)
	p("#!/bin/sh")
	p("# The tree that vifshape made of %s, by tc alone.", s.Device)
	p("set -e")
	p("tc qdisc delete dev %s root 2>/dev/null || :", s.Device)
	received := false
	for _, step := range can {
		if step.Port.Direction == hierarchy.Receive && !received {
			received = true
			p("ip link delete dev %s 2>/dev/null || :", link.IFBName(s.Device, 0))
		}
		for _, c := range tc.Commands(s.Device, step) {
			p("%s", c)
		}
	}
	if received {
		p("tc qdisc add dev %s clsact 2>/dev/null || :", s.Device)
		p("tc filter replace dev %s ingress pref 2 protocol all u32 match u32 0 0 action mirred egress redirect dev %s", s.Device, link.IFBName(s.Device, 0))
	}
	told(&b, cannot)
	return b.String()
}

// told says what is not done.
func told(b *strings.Builder, cannot []hierarchy.Step) {
	if len(cannot) == 0 {
		return
	}
	b.WriteString("\n# Left to do: without filters everything is in the rest. vifshape had:\n")
	for _, step := range cannot {
		m, ok := step.Item().(*hierarchy.Matched)
		if !ok || len(m.Match) == 0 { // of what is read from the kernel the digest alone is known
			fmt.Fprintf(b, "#   %s\n", strings.TrimPrefix(step.String(), step.Action.String()+" "))
			continue
		}
		for _, x := range m.Match {
			fmt.Fprintf(b, "#   match of %s (%v) %s\n", m.Path, m.Class, x.Text())
		}
	}
}
