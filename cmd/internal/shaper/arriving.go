package shaper

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/nft"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/foreign"
	"github.com/vifshape/vifshape/tc/hook"
)

// TCXArriving is what follows from TCX programs at the ingress of an interface that has a tree
// for what it receives.
const TCXArriving = "they run before the program that tells received packets apart, and what one of them does not return TCX_NEXT for goes past the tree"

// tellArriving warns of others who may keep what an interface receives from its tree, or
// get to see none of it any more.
func (x *Target) tellArriving(m *Machine) error {
	dev := x.Tree.Port.Device
	programs, err := bpf.TCX(x.Device.Index, hierarchy.Receive)
	if err != nil {
		return err
	}
	var names []string
	for _, p := range programs {
		names = append(names, p.String())
	}
	if len(names) > 0 {
		m.Warnf(hierarchy.Path(dev), "%s: TCX programs at ingress (%s): %s", dev, strings.Join(names, "; "), TCXArriving)
	}
	o, err := foreign.Look(x.Device.Interface)
	if err != nil {
		return err
	}
	// one in the place of ours is an error of its own
	others := slices.DeleteFunc(o.Arrive, func(f hook.Filter) bool { return f.Blocks })
	if len(others) > 0 {
		names, follows := Arriving(others)
		m.Warnf(hierarchy.Path(dev), "%s: filters of others at ingress (%s): %s", dev, strings.Join(names, "; "), follows)
	}
	return nil
}

// Arriving names the filters of others at the ingress of an interface that has a tree for
// what it receives, and says what follows. What our program has seen comes back from the IFB
// past all of them (skb_skip_tc_classify, net/core/dev.c, v6.12).
func Arriving(others []hook.Filter) (names []string, follows string) {
	var before, after bool
	for _, o := range others {
		name := fmt.Sprintf("%s with preference %d", o.Kind, o.Pref)
		if o.Name != "" {
			name += " (" + o.Name + ")"
		}
		names = append(names, name)
		before, after = before || o.First, after || !o.First
	}
	var all []string
	if before {
		all = append(all, "one runs before vifshape's, and where it ends the classification packets go past the tree")
	}
	if after {
		all = append(all, "those after vifshape's get to see no packet")
	}
	return names, strings.Join(all, "; ")
}

// bypassed is the error of firewall rules that would see no packet any more once what the
// interface receives is shaped. Without privileges they cannot be read, and nothing can be
// applied either.
func bypassed(dev string) error {
	chains, err := nft.IngressChains(dev)
	if errors.Is(err, caps.ErrNotPrivileged) {
		return nil
	}
	if err == nil && len(chains) > 0 {
		err = fmt.Errorf("%s: ingress: the firewall has rules at the ingress hook there (%s), which would see no packet any more: move them to a chain at prerouting, or take ingress out of the policy", dev, strings.Join(chains, ", "))
	}
	return err
}
