package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/foreign"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// interfaces looks at the interfaces with the given names; when there are none, and
// no policy that says which, at all but loopback.
func (x *examination) interfaces(ctx context.Context, names []string, policy bool) error {
	var err error
	if x.links, err = link.List(x.m.Conn); err != nil {
		return err
	}
	if len(names) == 0 && !policy {
		for _, l := range x.links {
			if l.Nature != link.Loopback && l.Receives == 0 {
				names = append(names, l.Name)
			}
		}
	}
	for _, n := range names {
		d, err := tc.Find(x.m.Conn, n)
		if no := (*link.NotFoundError)(nil); errors.As(err, &no) {
			x.add(Finding{Group: GroupInterface, Interface: n, Topic: "link", State: Missing, Needed: true, Text: err.Error()})
			continue
		}
		x.try(Finding{Group: GroupInterface, Interface: n, Topic: "link"}, func() error {
			if err == nil {
				x.iface(ctx, d)
			}
			return err
		})
	}
	return nil
}

// iface says how things stand with an interface. One that vanishes meanwhile says
// nothing.
func (x *examination) iface(ctx context.Context, d *tc.Device) {
	i := slices.IndexFunc(x.links, func(l link.Link) bool { return l.Index == int(d.Index) })
	if i < 0 {
		return // it came after the list was read
	}
	l := x.links[i]
	x.hardware[l.Name] = l.Nature == link.Physical
	say := func(f Finding) {
		f.Group, f.Interface = GroupInterface, l.Name
		x.add(f)
	}
	try := func(topic string, look func() error) {
		x.try(Finding{Group: GroupInterface, Interface: l.Name, Topic: topic}, func() error {
			if err := look(); !errors.Is(err, rtnl.ErrGone) {
				return err
			}
			return nil
		})
	}
	say(x.link(l))
	try("transmit queues", func() error {
		f, err := x.queues(l)
		if f.Topic != "" {
			say(f)
		}
		return err
	})
	var s hierarchy.State
	var o foreign.Others
	try("root qdisc", func() (err error) {
		if err := d.Read(ctx, &s); err != nil && !errors.Is(err, rtnl.ErrForeign) {
			return err
		}
		if o, err = foreign.Look(d.Interface); err != nil {
			return err
		}
		say(rootFinding(l, s.On(d.Port()).Root, o))
		for _, f := range x.hooks(l, o) {
			say(f)
		}
		return nil
	})
	if lost := (*shaper.LostError)(nil); errors.As(x.m.Intact(ctx, l.Name), &lost) { // other errors are other findings
		f := Finding{Topic: "tree", State: Missing, Text: strings.Join(lost.What, "; "), Follows: "it limits nothing that is not there"}
		switch {
		case lost.Other:
			f.State, f.Follows = Weaker, "what somebody else has written there holds, until the policy is applied again"
		case lost.Drops:
			f.Follows = "nothing comes in by it until that is put back"
		}
		if lost.Policy != "-" {
			f.Fix = []string{"vifshape apply " + words.Quoted(lost.Policy)}
		}
		say(f)
	}
	try("held", func() error {
		if !s.On(d.Port()).Root.Ours() {
			return nil
		}
		all, err := x.unheld(ctx, l.Name)
		for _, f := range all {
			say(f)
		}
		return err
	})
	try("TCX programs", func() error {
		programs, err := bpf.TCX(d.Index, hierarchy.Send)
		var tcx []string
		for _, p := range programs {
			tcx = append(tcx, p.String())
		}
		if len(tcx) > 0 {
			say(Finding{Topic: "TCX programs", State: Weaker, Text: "at egress: " + strings.Join(tcx, "; "), Names: tcx,
				Follows: "they run before the classifier, which gets only packets for which all of them return TCX_NEXT"})
		}
		return err
	})
	if x.m.Store.NetNS == "" { // managers name interfaces by their numbers in the initial namespace
		for _, w := range owners("/", l.Index) {
			say(Finding{Topic: "manager", State: Weaker, Text: fmt.Sprintf("%s: section %s of %s", w.name, w.section, w.file),
				Follows: "it makes its own queues whenever it sets up the interface, in place of vifshape's: take the section out"})
		}
	}
	try("ingress", func() error {
		all, err := x.receives(ctx, l, o)
		for _, f := range all {
			say(f)
		}
		return err
	})
	try("packets", func() error {
		off, err := l.Offloads(x.m.Conn)
		if err == nil {
			root, slowest := rates(s.On(d.Port()))
			say(x.packets(l, off, root, slowest))
		}
		return err
	})
	if f, ok := x.bridge(l); ok {
		say(f)
	}
}

// unheldBy says what the bindings in force do not hold, as far as they can be read.
func (x *examination) unheld(ctx context.Context, iface string) (all []Finding, err error) {
	t, s, err := x.m.TreeOf(ctx, iface)
	if err != nil {
		return nil, err
	}
	defer t.Binder.Close()
	unheld, err := observe.UnheldBy(ctx, t, s)
	if err != nil {
		return nil, err
	}
	for _, class := range slices.Sorted(maps.Keys(unheld)) {
		for _, text := range unheld[class] {
			all = append(all, Finding{Topic: "binding", State: Weaker, Text: fmt.Sprintf("%s: not held: %s", words.Name(t.Kernel.Names[class], class), words.Printable(text))})
		}
	}
	return all, nil
}

// link says what an interface is.
func (x *examination) link(l link.Link) Finding {
	text := []string{l.What(), fmt.Sprintf("mtu %d", l.MTU)}
	if l.Speed != 0 {
		text = append(text, words.Short(l.Speed))
	}
	f := Finding{Topic: "link", State: good, Text: strings.Join(text, ", ")}
	switch {
	case !l.Up:
		f.Text += ", switched off"
		f.Follows = "nothing is sent; a tree can be made and waits"
		f.Fix = []string{"ip link set dev " + words.Quoted(l.Name) + " up"}
	case !l.Carrier:
		f.Text += ", no carrier"
		f.Follows = "nothing is sent; a tree can be made and waits"
	}
	if f.Follows != "" && l.Nature == link.Physical { // the others are often made long before they are used
		f.State = Weaker
	}
	return f
}

// queues says what a tree does to an interface with several transmit queues.
func (x *examination) queues(l link.Link) (Finding, error) {
	n, err := l.Queues(x.m.Conn)
	if err != nil {
		return Finding{}, err
	}
	if n == 0 && l.Nature == link.Physical {
		n = l.TxQueues
	}
	f := Finding{Topic: "transmit queues", State: good, Text: fmt.Sprint(n)}
	switch {
	case n == 0:
		return Finding{}, nil
	case n > 1:
		f.State = Weaker
		f.Follows = "a tree is one queue before all of them: processors that send take turns"
	}
	return f, nil
}

// rootFinding says whose root qdisc an interface has.
func rootFinding(l link.Link, root hierarchy.Root, o foreign.Others) Finding {
	f := Finding{Topic: "root qdisc", State: good}
	switch {
	case o.Root.Kind != "":
		f.State, f.Text = Weaker, fmt.Sprintf("%s %v not made by vifshape", o.Root.Kind, o.Root.Handle)
		f.Follows = "apply leaves it alone unless the policy says replace = true, and clear puts it back then"
		if o.Partial {
			f.Follows = "apply leaves it alone unless the policy says replace = true, and clear cannot put it back then: it has classes, filters or qdiscs of its own"
		}
		f.Fix = []string{"tc qdisc del dev " + words.Quoted(l.Name) + " root"}
	case root.Ours():
		f.Text = fmt.Sprintf("htb %v made by vifshape", root.Handle)
	default:
		f.Text = l.Qdisc + ": the kernel's own, which a tree takes the place of"
		if l.Qdisc == "" {
			f.Text = "none"
		}
	}
	return f
}

// hooks says who else has filters at egress.
func (x *examination) hooks(l link.Link, o foreign.Others) (all []Finding) {
	if o.Ingress {
		return []Finding{{Topic: "egress hook", State: Weaker, Text: "qdisc ingress stands where clsact has its place",
			Follows: "bindings bpf and net_cls are refused", Fix: []string{"tc qdisc del dev " + words.Quoted(l.Name) + " ingress"}}}
	}
	if len(o.Filters) == 0 {
		return []Finding{{Topic: "egress hook", State: good, Text: "no filters but vifshape's"}}
	}
	f := Finding{Topic: "egress hook", State: Weaker, Text: "filters of others: "}
	f.Follows = "they run after vifshape's, and one that ends in redirect, drop or a priority of its own has the last word"
	for _, x := range o.Filters {
		name := fmt.Sprintf("%s with preference %d", x.Kind, x.Pref)
		if x.Name != "" {
			name += " (" + x.Name + ")"
		}
		f.Names = append(f.Names, name)
		if x.Blocks {
			f.Follows = fmt.Sprintf("the one with preference %d has the place of vifshape's: bindings bpf and net_cls are refused", x.Pref)
			f.Fix = []string{fmt.Sprintf("tc filter del dev %s egress pref %d", words.Quoted(l.Name), x.Pref)}
		} else if x.First {
			f.Follows = "one runs before vifshape's, and if it ends the classification packets do not reach that"
		}
	}
	f.Text += strings.Join(f.Names, "; ")
	return []Finding{f}
}

// rates are those of the interface and of the slowest leaf; 0 where there is no
// tree.
func rates(s hierarchy.PortState) (root, slowest hierarchy.Bandwidth) {
	inner := map[hierarchy.ClassID]bool{}
	for _, c := range s.Classes {
		inner[c.Parent] = true
	}
	for _, c := range s.Classes {
		if c.ID.Minor() == hierarchy.RootMinor {
			root = c.Rate
		}
		if !inner[c.ID] && (slowest == 0 || c.Rate < slowest) {
			slowest = c.Rate
		}
	}
	return root, slowest
}

const (
	// lineTime is how long one packet may take on the line before all others
	// notice: CoDel's target.
	lineTime = 5 * time.Millisecond
	// leafTime is how long one may take at the rate of a branch: where it takes
	// longer the branch does not keep its share (see package tc, defaults).
	leafTime = 500 * time.Millisecond
)

// packets says what the largest packets do at the rates of a tree. Without one it
// says from which rate on they matter.
func (x *examination) packets(l link.Link, o link.Offloads, root, slowest hierarchy.Bandwidth) Finding {
	f := Finding{Topic: "packets", State: good, Text: fmt.Sprintf("up to %v each (GRO %s)", o.Packet, onOff(o.GRO))}
	if o.Packet <= frame(l) {
		return f
	}
	if root == 0 {
		f.Follows = fmt.Sprintf("one takes over %v of the line below %s", lineTime, words.Short(rateOf(o.Packet, lineTime)))
		return f
	}
	if f.Follows = tooLarge(o.Packet, root, slowest, lineTime, "all others wait for"); f.Follows == "" {
		return f
	}
	f.State = Weaker
	f.Fix = []string{smaller(l, hierarchy.Size(float64(root)/8*lineTime.Seconds()))}
	f.Follows += "; turning tso and gso off by ethtool does not make them smaller"
	if forwarding() {
		for _, other := range x.links {
			if other.Index == l.Index {
				continue
			}
			if o, err := other.Offloads(x.m.Conn); err == nil && o.GRO && other.Nature == link.Physical {
				f.Fix = append(f.Fix, "ethtool -K "+words.Quoted(other.Name)+" gro off")
			}
		}
	}
	return f
}

// tooLarge says what packets of a size do at the rates of a tree, where one may take so
// long, and who waits for it; nothing where they are small enough.
func tooLarge(size hierarchy.Size, root, slowest hierarchy.Bandwidth, most time.Duration, who string) (follows string) {
	if t := timeOf(size, root); t > most {
		follows = fmt.Sprintf("one takes %v at the rate of %s, which %s", t.Round(100*time.Microsecond), words.Short(root), who)
	}
	if t := timeOf(size, slowest); t > leafTime {
		if follows != "" {
			follows += "; "
		}
		follows += fmt.Sprintf("it takes %v at %s, that of the slowest branch, whose share is not kept then", t.Round(time.Millisecond), words.Short(slowest))
	}
	return follows
}

// smaller is the command that keeps the packets of an interface within a size, or
// one segment each. TCP makes packets of two segments whatever gso_max_size allows
// (tcp_tso_autosize, net/ipv4/tcp_output.c, v6.12).
func smaller(l link.Link, size hierarchy.Size) string {
	if size < 2*frame(l) {
		return "ip link set dev " + words.Quoted(l.Name) + " gso_max_segs 1"
	}
	return fmt.Sprintf("ip link set dev %s gso_max_size %d", words.Quoted(l.Name), uint64(size))
}

// frame is the largest packet of one segment, with its Ethernet header.
func frame(l link.Link) hierarchy.Size { return hierarchy.Size(l.MTU) + 14 }

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// forwarding says whether this network namespace is a router.
func forwarding() bool {
	for _, f := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) != "0" {
			return true
		}
	}
	return false
}

func timeOf(size hierarchy.Size, rate hierarchy.Bandwidth) time.Duration {
	if rate == 0 {
		return math.MaxInt64
	}
	return time.Duration(float64(size) * 8 / float64(rate) * float64(time.Second))
}

func rateOf(size hierarchy.Size, t time.Duration) hierarchy.Bandwidth {
	return hierarchy.Bandwidth(float64(size) * 8 / t.Seconds())
}

// bridge says what becomes of the bindings of those behind a bridge.
func (x *examination) bridge(l link.Link) (Finding, bool) {
	if l.Nature != link.Bridge {
		return Finding{}, false
	}
	ports := len(l.Members)
	hardware := slices.ContainsFunc(link.Carriers(x.links, l), func(c link.Link) bool { return c.Nature == link.Physical })
	f := Finding{Topic: "bridge", State: good, Text: fmt.Sprintf("%d ports", ports)}
	b, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables")
	filtered := err == nil && strings.TrimSpace(string(b)) == "1"
	switch {
	case ports == 0:
	case !hardware:
		f.State = Weaker
		f.Text += ", none of them on hardware: what containers behind it send is routed on"
		f.Follows = "routed packets have lost their socket: they are of a branch by the ports that are bound with cgroups, with binding bpf, else the rest of the interface that they leave by; bindings of users do not hold for them"
	case filtered:
		f.State = Weaker
		f.Text += ", bridge-nf-call-iptables is 1"
		f.Follows = "bridged packets lose their socket in the firewall and are the rest; Kubernetes, and Docker where it keeps containers apart, need it so"
		f.Fix = []string{"sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0"}
	default:
		f.Text += "; bridged packets keep their socket, and bindings hold"
	}
	return f, true
}
