package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/nft"
	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/foreign"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/link"
)

// receives says how things stand with the tree for what an interface receives. Where it
// has none, others at its ingress are no matter.
func (x *examination) receives(ctx context.Context, l link.Link, o foreign.Others) (all []Finding, err error) {
	t, err := x.m.Interface(l.Name, "")
	if err != nil {
		return nil, nil // said of the interface
	}
	defer t.Binder.Close()
	if !t.Record.Receives {
		return nil, nil
	}
	for _, ifb := range x.links {
		if ifb.Receives == l.Index && !ifb.Up {
			all = append(all, Finding{Topic: "ifb", State: Missing, Text: ifb.Name + " is switched off", Follows: "what " + l.Name + " receives is dropped, all of it",
				Fix: []string{"ip link set dev " + words.Quoted(ifb.Name) + " up"}})
		}
	}
	s, err := t.Queues(ctx)
	if err != nil {
		return all, err
	}
	root, slowest := rates(t.In(s))
	more, err := x.receiving(l, o, root, slowest)
	if all = append(all, more...); err != nil {
		return all, err
	}
	flows, err := observe.FlowsOf(t)
	if flows == nil {
		return all, err
	}
	f := Finding{Topic: "flows", State: good, Text: flows.String()}
	if flows.Evicted > 0 {
		f.State = Weaker
		f.Text = fmt.Sprintf("%s known, room for %d; %d made room for others", words.Number(flows.Known, "flow", "flows"), flows.Room, flows.Evicted)
		f.Follows = "what a flow is sent that is not known any more is the rest's, until it sends again or is looked up"
		if more := min(2*flows.Room, hierarchy.MaxFlows); more > flows.Room {
			f.Follows += fmt.Sprintf("; flows = %d in the ingress of the interface makes room for more", more)
		}
	}
	return append(all, f), nil
}

// receiving says what stands in the way of shaping what an interface receives at the rates
// of a tree.
func (x *examination) receiving(l link.Link, o foreign.Others, root, slowest hierarchy.Bandwidth) (all []Finding, err error) {
	if len(o.Arrive) > 0 {
		all = append(all, arriving(l, o.Arrive))
	}
	chains, err := nft.IngressChains(l.Name)
	if err != nil && !errors.Is(err, caps.ErrNotPrivileged) {
		return all, err
	}
	if len(chains) > 0 {
		all = append(all, Finding{Topic: "firewall", State: Missing, Text: "chains at ingress: " + strings.Join(chains, ", "), Names: chains,
			Follows: "beside the tree their rules see no packet, and ingress in a policy is refused: move them to a chain at prerouting"})
	}
	for _, f := range o.Filters {
		if f.BlocksNote {
			all = append(all, inPlace(l, f, "egress"))
		}
	}
	programs, err := bpf.TCX(uint32(l.Index), hierarchy.Receive)
	if err != nil {
		return all, err
	}
	if len(programs) > 0 {
		f := Finding{Topic: "TCX programs", State: Weaker, Follows: shaper.TCXArriving}
		for _, p := range programs {
			f.Names = append(f.Names, p.String())
		}
		f.Text = "at ingress: " + strings.Join(f.Names, "; ")
		all = append(all, f)
	}
	if l.XDP {
		all = append(all, Finding{Topic: "XDP", State: Weaker, Text: "a program sees what arrives before all others",
			Follows: "what it drops, sends back or hands to another interface is in no tree, nor counted"})
	}
	if w := shaper.OverIngress(l, root); w != "" {
		all = append(all, Finding{Topic: "ingress", State: Weaker, Text: w})
	}
	off, err := l.Offloads(x.m.Conn)
	if err != nil {
		return all, err
	}
	return append(all, receivedPackets(l, off, root, slowest)), nil
}

// inPlace is about a filter that has the place of one of vifshape's for the receiving side.
func inPlace(l link.Link, f hook.Filter, where string) Finding {
	return Finding{Topic: where + " hook", State: Missing, Text: fmt.Sprintf("a filter %s has preference %d at %s, the place of vifshape's", f.Kind, f.Pref, where),
		Follows: "ingress in a policy is refused", Fix: []string{fmt.Sprintf("tc filter del dev %s %s pref %d", words.Quoted(l.Name), where, f.Pref)}}
}

// arriving says who else has filters at ingress.
func arriving(l link.Link, others []hook.Filter) Finding {
	if i := slices.IndexFunc(others, func(o hook.Filter) bool { return o.Blocks }); i >= 0 {
		return inPlace(l, others[i], "ingress")
	}
	f := Finding{Topic: "ingress hook", State: Weaker}
	f.Names, f.Follows = shaper.Arriving(others)
	f.Text = "filters of others: " + strings.Join(f.Names, "; ")
	return f
}

// arrivalTime is how long a packet may take at the rate of a tree that receives. Measured
// with three downloads that fill one in packets of 64 KiB, over a veth that hands them on
// whole, in a branch that borrows answers come late by (90th percentile) 64 ms at 5 mbit,
// 47 at 20, 17 at 50, 12 at 200 and 4 at 500; in single frames by 12, 3, 1, 1 and, for want
// of processor, more. A branch within its guarantee waits less than a millisecond with
// either, at every rate: HTB does not ask the parent then. So the 5 ms of [lineTime] are
// kept where one takes no more than this.
const arrivalTime = 2 * time.Millisecond

// receivedPackets says what the largest packets that arrive do at the rates of a tree.
func receivedPackets(l link.Link, o link.Offloads, root, slowest hierarchy.Bandwidth) Finding {
	size := l.Received()
	if l.Nature == link.Physical && !o.GRO {
		size = frame(l)
	}
	f := Finding{Topic: "received packets", State: good, Text: fmt.Sprintf("up to %v each (GRO %s)", size, onOff(o.GRO))}
	if size <= frame(l) || root == 0 {
		return f
	}
	if f.Follows = tooLarge(size, root, slowest, arrivalTime, "branches wait for, times three or so, that have used up what is guaranteed to them"); f.Follows == "" {
		return f
	}
	f.State = Weaker
	if o.GRO {
		f.Fix = []string{"ethtool -K " + words.Quoted(l.Name) + " gro off"}
	}
	return f
}
