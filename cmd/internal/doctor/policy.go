package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/foreign"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// policyCheck is one policy that is held against the machine.
type policyCheck struct {
	*examination
	file   string
	policy *policy.Policy
	by     map[string]hierarchy.Selector // how the policy names interfaces
	found  int
}

// written is a path as the policy has it.
func (c *policyCheck) written(path hierarchy.Path) hierarchy.Path {
	iface := path.Interface()
	if by, ok := c.by[iface]; ok {
		return hierarchy.Path(string(by) + strings.TrimPrefix(string(path), iface))
	}
	return path
}

// policy says what stands in the way of a policy and returns its interfaces.
func (x *examination) policy(ctx context.Context, file string) ([]string, error) {
	p, err := shaper.ReadPolicy(file)
	var bad policy.Errors
	switch {
	case errors.As(err, &bad):
		for _, m := range bad {
			f := Finding{Group: groupPolicy, Topic: "policy", State: Missing, Needed: true, Text: m.Msg, Follows: m.Hint, Path: m.Path, File: m.File, Line: m.Line, Column: m.Column}
			if m.Path != "" {
				f.Text = string(m.Path) + ": " + m.Msg
			}
			if m.Warning {
				f.State, f.Needed = Weaker, false
			}
			x.add(f)
		}
		return nil, nil
	case err != nil:
		return nil, err
	}
	x.m.TellPlaced(p.Warnings)
	c := &policyCheck{examination: x, file: file, policy: p, by: map[string]hierarchy.Selector{}}
	c.try("", "interfaces", func() error {
		x.links, err = link.List(x.m.Conn)
		return err
	})
	for _, w := range p.Unquoted(shaper.Among(x.links)) {
		c.say(w.Path, "", Finding{Topic: "name", State: Weaker, Text: fmt.Sprintf("%s: %s", w.Path, w.Msg), Follows: w.Hint})
	}
	wanted, absent, err := x.m.Wanted(p, nil)
	if wrong := (*shaper.MisnamedError)(nil); errors.As(err, &wrong) {
		c.say(hierarchy.Path(wrong.Name), "", Finding{Topic: "name", State: Missing, Needed: true, Text: err.Error()})
	} else if err != nil {
		return nil, err
	}
	devices := map[*hierarchy.Tree]*tc.Device{}
	for _, w := range wanted {
		d, _, err := x.m.Device(w.Tree.Port.Device)
		if no := w.Unknown; no != nil {
			c.say(hierarchy.Path(no.Iface), "rate", Finding{Topic: "link", State: Missing, Needed: true, Text: no.Error(), Follows: no.Remedy()})
		}
		c.by[w.Tree.Port.Device] = w.By
		if no := (*link.NotFoundError)(nil); errors.As(err, &no) {
			absent = append(absent, no)
		} else if err != nil {
			c.say(hierarchy.Path(w.Tree.Port.Device), "", Finding{Topic: "name", State: Missing, Needed: true, Text: err.Error()})
		} else {
			devices[w.Tree] = d
		}
	}
	for _, no := range absent {
		f := Finding{Topic: topicAbsent, State: Missing, Needed: len(wanted) == 0, Text: no.Error()}
		if !f.Needed {
			f.Follows = "apply shapes the others, and nothing with --all-or-nothing; once it is there, apply again"
		}
		c.say(hierarchy.Path(no.Name), "", f)
	}
	var names []string
	way := c.binding(len(devices))
	for _, w := range wanted {
		if d := devices[w.Tree]; d != nil {
			names = append(names, d.Name)
			c.tree(ctx, d, w.Tree, way)
		}
	}
	c.try("", "shaped twice", func() error { return c.twice(names) })
	if c.found == 0 {
		x.add(Finding{Group: groupPolicy, Topic: "policy", State: good, Needed: true, File: file, Text: "nothing stands in its way"})
	}
	return names, nil
}

// try is [examination.try] for an interface of the policy, without which it is not
// known whether the policy can be applied.
func (c *policyCheck) try(path hierarchy.Path, topic string, look func() error) {
	if err := look(); err != nil {
		c.say(path, "", Finding{Topic: topic, State: Unknown, Needed: true, Text: strings.TrimPrefix(string(path)+": ", ": ") + "could not be looked at: " + err.Error()})
	}
}

// say adds a finding about a key of the policy.
func (c *policyCheck) say(path hierarchy.Path, key string, f Finding) {
	f.Group, f.Path = groupPolicy, path
	f.File, f.Line, f.Column = c.policy.Place(c.written(path), key)
	f.Interface = path.Interface()
	if f.State != good {
		c.found++
	}
	c.add(f)
}

// binding finds the way that the policy is bound by, on so many interfaces.
func (c *policyCheck) binding(interfaces int) bind.Way {
	f := Finding{Topic: "binding", State: Missing, Needed: true, Interface: ""}
	if !c.root() {
		f.State, f.Text = Unknown, "ways of binding could not be tried without privileges"
		c.say("", "binding", f)
		return bind.WayNone
	}
	allowed := shaper.Ways(c.policy.Binding)
	way, weak := bind.WayNone, []string(nil)
	for _, w := range c.report.Ways {
		if w.Err == nil && c.ways[w.Way] == "" && (allowed == nil || slices.Contains(allowed, w.Way)) {
			way, weak = w.Way, w.Weak
			break
		}
	}
	switch {
	case way == bind.WayNone:
		f.Text = fmt.Sprintf("binding %q: no way of it works here", c.policy.Binding)
		f.Follows = "the findings about binding say why"
		c.say("", "binding", f)
	case way.Tagged() && interfaces > 1:
		f.Text = fmt.Sprintf("binding %s: one process has one net_cls tag for all interfaces, and the policy shapes %d", way, interfaces)
		c.say("", "binding", f)
	default:
		if len(weak) > 0 {
			c.say("", "binding", Finding{Topic: "way", State: Weaker, Text: fmt.Sprintf("binding %q takes %s", c.policy.Binding, way), Weak: weak})
		}
		return way
	}
	return bind.WayNone
}

// tree holds one interface of the policy against the one that is there.
func (c *policyCheck) tree(ctx context.Context, d *tc.Device, t *hierarchy.Tree, way bind.Way) {
	top := hierarchy.Path(t.Port.Device)
	i := slices.IndexFunc(c.links, func(l link.Link) bool { return l.Index == int(d.Index) })
	if i < 0 {
		return // it came after the list was read
	}
	l := c.links[i]
	c.try(top, "root qdisc", func() error { return c.others(d, l, t, way) })
	c.speed(l, t)
	c.try(top, "packets", func() error { return c.large(l, t) })
	c.try(top, "ingress", func() error { return c.receive(ctx, d, l, t, way) })
	c.try(top, "match", func() error { return c.matches(d, l, t, way) })
	if err := d.Settle(ctx, t); err != nil {
		c.unsettled(t, err)
	} else {
		for _, r := range d.Remarks(t) {
			c.say(top, "", Finding{Topic: "remark", State: Weaker, Text: r})
		}
	}
	c.try(top, "binding", func() error { return c.bound(ctx, t, d, way) })
}

// others says what of others stands where the tree and its classifier have their
// places.
func (c *policyCheck) others(d *tc.Device, l link.Link, t *hierarchy.Tree, way bind.Way) error {
	top := hierarchy.Path(t.Port.Device)
	o, err := foreign.Look(d.Interface)
	if err != nil {
		return err
	}
	if o.Root.Kind != "" {
		f := rootFinding(l, hierarchy.Root{}, o)
		f.Text = fmt.Sprintf("%s: root qdisc %s", t.Port.Device, f.Text)
		f.Follows += "; or remove it"
		f.State, f.Needed = Missing, true
		if t.Replace {
			f.State, f.Needed, f.Fix = Weaker, false, nil
			f.Follows = "apply replaces it, and `vifshape clear` puts it back"
			if o.Partial {
				f.Follows = "apply replaces it, and it cannot be put back: keep what made it"
			}
		}
		c.say(top, "replace", f)
	}
	if shaper.Classifier(way) == "bpf" {
		for _, f := range c.hooks(l, o) {
			if f.State != good {
				f.Needed = o.Ingress || slices.ContainsFunc(o.Filters, func(x hook.Filter) bool { return x.Blocks })
				if f.Needed {
					f.State = Missing
				}
				f.Text = t.Port.Device + ": " + f.Text
				c.say(top, "", f)
			}
		}
	}
	return nil
}

// large says what the largest packets do to the tree.
func (c *policyCheck) large(l link.Link, t *hierarchy.Tree) error {
	top := hierarchy.Path(t.Port.Device)
	off, err := l.Offloads(c.m.Conn)
	if err != nil {
		return err
	}
	if t.MTU != 0 && t.MTU < off.Packet {
		f := Finding{Topic: "mtu", State: Weaker, Text: fmt.Sprintf("%s: mtu %v, and the interface is handed packets of up to %v", t.Port.Device, t.MTU, off.Packet),
			Follows: "bursts and queues that are worked out from mtu are too small for them"}
		if t.MTU < frame(l) {
			f.Follows += fmt.Sprintf("; write mtu = %q or more: the link-layer header counts", frame(l))
		} else {
			f.Fix = []string{smaller(l, t.MTU)}
		}
		c.say(top, "mtu", f)
	}
	if f := c.packets(l, off, t.Root.Rate, slowestOf(t)); f.State != good {
		f.Text = fmt.Sprintf("%s: packets of %s", t.Port.Device, f.Text)
		c.say(top, "rate", f)
	}
	return nil
}

// slowestOf is the rate of a tree's slowest leaf.
func slowestOf(t *hierarchy.Tree) hierarchy.Bandwidth {
	slowest := t.Root.Rate
	for b := range t.All() {
		if b.Leaf() {
			slowest = min(slowest, b.Rate)
		}
	}
	return slowest
}

// receive says what stands in the way of the tree for what the interface receives.
func (c *policyCheck) receive(ctx context.Context, d *tc.Device, l link.Link, t *hierarchy.Tree, way bind.Way) error {
	in, top := t.Ingress, hierarchy.Path(t.Port.Device)
	if in == nil {
		return nil
	}
	if err := d.Receiver().Settle(ctx, in); err != nil {
		c.unsettled(in, err)
	}
	if way != bind.WayNone {
		if f := receivingFinding(way); f.State != good {
			f.Needed, f.Topic = f.State == Missing, "way"
			c.say(top, "ingress", f)
		}
	}
	o, err := foreign.Look(d.Interface)
	if err != nil {
		return err
	}
	all, err := c.receiving(l, o, in.Root.Rate, slowestOf(in))
	for _, f := range all {
		if f.State == good {
			continue
		}
		f.Needed = f.State == Missing
		if !strings.HasPrefix(f.Text, t.Port.Device+": ") {
			f.Text = fmt.Sprintf("%s: %s: %s", t.Port.Device, f.Topic, f.Text)
		}
		c.say(top, "ingress", f)
	}
	return err
}

// matches says what stands in the way of the tree's matches.
func (c *policyCheck) matches(d *tc.Device, l link.Link, t *hierarchy.Tree, way bind.Way) error {
	all, top := t.Matched(), hierarchy.Path(t.Port.Device)
	if len(all) == 0 || way == bind.WayNone {
		return nil
	}
	if err := cgroup.Matches(cgroup.Config{Interface: t.Port.Device, Index: d.Index, Bare: d.Bare()}, way, all); err != nil {
		c.say(top, "", Finding{Topic: "match", State: Missing, Needed: true, Text: fmt.Sprintf("%s: match: %v", top, err)})
	}
	o, err := foreign.Look(d.Interface)
	for _, f := range o.Filters {
		if f.BlocksMatch {
			f := inPlace(l, f, "egress")
			f.Needed, f.Text, f.Follows = true, fmt.Sprintf("%s: %s: %s", top, f.Topic, f.Text), "match in a policy is refused"
			c.say(top, "", f)
		}
	}
	return err
}

// speed says whether the line carries what the policy promises.
func (c *policyCheck) speed(l link.Link, t *hierarchy.Tree) {
	path := hierarchy.Path(t.Port.Device)
	if w := shaper.OverLine(l, t.Root.Rate); w != "" {
		c.say(path, "rate", Finding{Topic: "rate", State: Weaker, Text: w})
	}
	if !l.Up {
		c.say(path, "", Finding{Topic: "link", State: Weaker, Text: t.Port.Device + ": switched off",
			Follows: "nothing is sent; the tree is made and waits", Fix: []string{"ip link set dev " + words.Quoted(l.Name) + " up"}})
	}
}

// twice says which packets of the policy's trees go through another tree.
func (c *policyCheck) twice(names []string) error {
	warnings, err := shaper.Twice(c.links, names, func() (map[int]hierarchy.Root, error) { return tc.Roots(c.m.Conn) })
	for _, w := range warnings {
		c.say("", "interface", Finding{Topic: "shaped twice", State: Weaker, Text: w})
	}
	return err
}

// unsettled adds what the kernel could not keep, each with its branch.
func (c *policyCheck) unsettled(t *hierarchy.Tree, err error) {
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	for _, err := range all {
		path, key := hierarchy.Path(t.Port.Device), ""
		for b := range t.All() {
			if strings.HasPrefix(err.Error(), string(b.Path)+": ") {
				path = b.Path
			}
		}
		f := Finding{Topic: "branch", State: Missing, Needed: true, Text: err.Error()}
		if strings.HasPrefix(strings.TrimPrefix(err.Error(), string(path)+": "), "qdisc ") {
			f.Topic, key = "qdisc", "qdisc"
			if t.Port.Direction == hierarchy.Receive {
				key = "ingress.qdisc"
			}
			if b := t.Find(path); b != nil && errors.Is(err, rtnl.ErrNotSupported) {
				_, f.Fix = c.module("sch_" + b.Qdisc.Kind)
				if !c.root() {
					f.State = Unknown
				}
			}
		}
		c.say(path, key, f)
	}
}

// boundTo says which bindings name what is not there, and which can be left.
func (c *policyCheck) bound(ctx context.Context, t *hierarchy.Tree, d *tc.Device, way bind.Way) error {
	if way == bind.WayNone {
		return nil
	}
	if way.Tagged() {
		others, err := c.m.Tagged(t.Port.Device, d.Index)
		if err != nil {
			return err
		}
		if len(others) > 0 {
			c.say("", "binding", Finding{Topic: "binding", State: Missing, Needed: true,
				Text: fmt.Sprintf("binding %s: one process has one net_cls tag for all interfaces, and %s uses it already", way, others[0])})
		}
		// Where net_cls is not mounted, looking there would mount it.
		for b := range t.All() {
			for _, x := range b.Bind {
				if x.Kind == bind.User || x.Kind == bind.Link {
					c.say(b.Path, "bind", Finding{Topic: "binding", State: Missing, Needed: true, Text: fmt.Sprintf("%s: binding %q: net_cls binds cgroups only", b.Path, x)})
				}
			}
		}
		return nil
	}
	b, err := cgroup.NewBinder(cgroup.Config{Hook: hook.Of(d.Interface), Interface: t.Port.Device, Index: d.Index, NetNS: c.m.Store.NetNS, RunDir: c.m.RunDir, Ways: []bind.Way{way}})
	if err != nil {
		return err
	}
	defer b.Close()
	r, err := b.Resolve(ctx, resolve.Branches(t), nil)
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		c.say(hierarchy.Path(t.Port.Device), "", Finding{Topic: "binding", State: Missing, Needed: true, Text: err.Error()})
		return nil
	}
	for _, p := range r.Pending {
		c.say(p.Path, "bind", Finding{Topic: "binding", State: Weaker, Text: fmt.Sprintf("%s: %v is not there: %s%s", p.Path, p.Binding, p.Reason, shaper.MayMean(ctx, b, p.Binding)),
			Follows: "once it is there, vifshape agent binds it at once, else the next apply"})
	}
	for _, o := range r.Outside {
		c.say(o.Path, "bind", Finding{Topic: "binding", State: Weaker, Text: fmt.Sprintf("%s: %s does not hold all of it: %s", o.Path, shaper.BindingText(o.Binding), words.Printable(o.String()))})
	}
	h, err := b.Homes()
	if err != nil {
		return err
	}
	for _, x := range r.Bound {
		uid, err := home.Mover(h.Tree, x.Target)
		if err != nil {
			return err
		}
		if uid != 0 {
			c.say(x.Path, "bind", Finding{Topic: "binding", State: Weaker, Text: fmt.Sprintf("%s: user %d may move processes out of %s", x.Path, uid, words.Printable(x.Target.String())),
				Follows: "it was delegated to that user: bind the cgroup that was, above it"})
		}
		more, err := resolve.Subordinates(x.Target)
		if err != nil {
			return err
		}
		if len(more) > 0 {
			c.say(x.Path, "bind", Finding{Topic: "binding", State: Weaker,
				Text:    fmt.Sprintf("%s: %s does not hold what the user starts under its other numbers, %s of /etc/subuid, as in rootless containers", x.Path, x.From, strings.Join(more, ", ")),
				Follows: fmt.Sprintf("they have the user's cgroup: bind cgroup:/user.slice/user-%d.slice as well", x.Target.ID)})
		}
	}
	return nil
}
