package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/qdisc"
)

func newSelfCommand(e *env) *cobra.Command {
	o := showOptions{sample: 500 * time.Millisecond}
	c := &cobra.Command{
		Use:   "self",
		Short: "Show the branch that this process is in, and what it gets",
		Long: `Self prints the branch that the calling process sends in, one line for each
interface that it has one on: guarantee and ceiling, what was sent and dropped,
what is waiting, what is being sent now, the queue, and what bound it. All of a
branch's processes share these. Self needs no privileges and works in a program
that run started, and in its children.

It goes by the cgroup of the process. In a container that hides the cgroups above
its own, it goes by VIFSHAPE_BRANCH, which run sets, and says so.

EXIT STATUS
  0   done
  1   an error, or this process is in no branch
  64  wrong flags or arguments`,
		Args: args(0, 0, ""),
		RunE: interruptible(func(c *cobra.Command, _ []string) error {
			if o.sample <= 0 {
				return usagef("--sample %v is no time to wait: write one like 1s", o.sample)
			}
			return e.self(c.Context(), o)
		}),
	}
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	c.Flags().DurationVar(&o.sample, "sample", o.sample, "look twice, `TIME` apart, for what is being sent")
	return c
}

// selfJSON is the stable form of self.
type selfJSON struct {
	Branches []*selfView `json:"branches"`
}

// selfView is the branch of the calling process on one interface.
type selfView struct {
	Interface string `json:"interface"`
	*branchView
	Way    bind.Way    `json:"binding"`
	From   string      `json:"from"`
	Target bind.Target `json:"target,omitzero"` // empty: only the environment says so
	// Delegated are the branches at and above this one that are delegated.
	Delegated []record.Delegated `json:"delegated,omitempty"`
}

func (e *env) self(ctx context.Context, o showOptions) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	out := selfJSON{Branches: []*selfView{}}
	var rests []string // of the interfaces on which it has no branch
	var own []*own
	err = e.each(m, "", func(iface string) error {
		x, err := ownBranch(m, ctx, iface)
		switch {
		case err != nil:
			return err
		case x == nil:
			rests = append(rests, string(hierarchy.Path(iface).Join(hierarchy.RestName)))
		default:
			own = append(own, x)
		}
		return nil
	})
	lost := err
	if err != nil && !onlyLost(err) {
		return err
	}
	if len(own) > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(o.sample):
		}
	}
	for _, x := range own {
		v, err := x.view()
		if err != nil {
			return err
		}
		if v.Target.Kind == bind.TargetNone {
			e.notef("%s: this container hides the cgroups above its own: the branch is that of %s", v.Interface, shaper.BranchVariable)
		}
		out.Branches = append(out.Branches, v)
	}
	if o.json {
		err = e.json(out)
	} else if len(out.Branches) > 0 {
		err = out.write(e)
	}
	if err != nil || lost != nil || len(out.Branches) > 0 {
		return errors.Join(err, lost)
	}
	return outsideOf(m, rests)
}

// outsideOf says where the traffic of a process goes that is in no branch.
func outsideOf(m *shaper.Machine, rests []string) error {
	for _, way := range []bind.Way{bind.WayBPF, bind.WayNetCls} {
		target, _, err := cgroupfs.Own(way)
		if err != nil {
			return err
		}
		if ns, p, ok := home.Parse(target); ok && ns != m.Store.NetNS {
			return fmt.Errorf("this process is in no branch of this network namespace: its cgroup is that of %s in another one", p)
		}
	}
	if len(rests) == 0 {
		return errors.New("this process is in no branch: no interface is shaped by vifshape in this network namespace")
	}
	return fmt.Errorf("this process is in no branch: what it sends goes to %s", strings.Join(rests, ", "))
}

// ownBranch is the branch of the calling process on one interface, looked at once.
type own struct {
	device *tc.Device
	class  hierarchy.Class
	leaf   *hierarchy.Leaf
	way    bind.Way
	bound  hierarchy.Bound
	record *record.Record
	at     time.Time
	bytes  uint64
}

// ownBranch looks at an interface; nil where the process has no branch on it.
func ownBranch(m *shaper.Machine, ctx context.Context, iface string) (*own, error) {
	x, s, err := m.TreeOf(ctx, iface)
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	way := s.Hook.Way
	if x.Blind != nil {
		way = x.Record.Way
	}
	b, err := m.Inside(x.Interface, way, x.Named(s.Bound, x.Blind != nil), x.Blind != nil)
	if err != nil {
		return nil, err
	}
	tree := x.On(s)
	there := slices.ContainsFunc(tree.Classes, func(c hierarchy.Class) bool { return c.ID == b.Class })
	if bare, err := x.Bare(); !there || err == nil && bare { // else no binding is lost, or it cannot be told
		if err := x.Losses(s); err != nil {
			return nil, err
		}
	}
	if b.Class == 0 {
		return nil, nil
	}
	o := &own{device: x.Device, way: way, bound: b, record: x.Record}
	i := slices.IndexFunc(tree.Classes, func(c hierarchy.Class) bool { return c.ID == b.Class })
	if i < 0 {
		return nil, fmt.Errorf("%s: its class %v is gone: apply %s again", b.Path, b.Class, x.Record.PolicyName())
	}
	o.class = tree.Classes[i]
	if i := slices.IndexFunc(tree.Leaves, func(l hierarchy.Leaf) bool { return l.Class == b.Class }); i >= 0 {
		o.leaf = &tree.Leaves[i]
	}
	n, err := o.count()
	o.bytes = n.Bytes
	return o, err
}

// count reads the counters of the branch.
func (o *own) count() (tc.ClassStats, error) {
	all, err := o.device.Stats()
	if err != nil {
		return tc.ClassStats{}, err
	}
	o.at = time.Now()
	i := slices.IndexFunc(all, func(c tc.ClassStats) bool { return c.Class == o.class.ID })
	if i < 0 {
		return tc.ClassStats{}, fmt.Errorf("%s: its class %v went while it was looked at", o.class.Path, o.class.ID)
	}
	return all[i], nil
}

// viewTree looks a second time.
func (o *own) view() (*selfView, error) {
	from := o.at
	n, err := o.count()
	if err != nil {
		return nil, err
	}
	v := &selfView{Interface: o.device.Name, branchView: newBranchView(o.class, n, o.leaf), Way: o.way, From: o.bound.From, Target: o.bound.Target}
	for _, d := range o.record.Delegated {
		if o.class.Path.Below(d.Path) {
			v.Delegated = append(v.Delegated, d)
		}
	}
	v.Sending = new(hierarchy.Bandwidth)
	if n.Bytes > o.bytes { // fewer: the class was made anew meanwhile
		*v.Sending = hierarchy.Bandwidth(float64(n.Bytes-o.bytes) * 8 / o.at.Sub(from).Seconds())
	}
	return v, nil
}

func (s selfJSON) write(e *env) error {
	kinds := newKindTable(qdisc.Kinds())
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "BRANCH\tCLASS\tRATE\tCEIL\tPRIO\tSENT\tDROPPED\tWAITING\tSENDING\tQDISC\tBOUND BY")
	for _, v := range s.Branches {
		qdisc := "-"
		if v.Qdisc != nil {
			qdisc = kinds.text(*v.Qdisc)
		}
		fmt.Fprintf(t, "%s\t%v\t%s\t%s\t%d\t%s\t%d\t%s\t%s\t%s\t%s (%s)\n", v.Path, v.ID, words.Short(v.Rate), words.Short(v.Ceil), v.Prio,
			words.Bytes(v.Bytes), v.Drops, words.Bytes(uint64(v.Backlog)), words.Short(*v.Sending), qdisc, words.Printable(v.From), v.Way)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, v := range s.Branches {
		for _, d := range v.Delegated {
			fmt.Fprintf(e.stdout, "  %s: delegated to %s\n", d.Path, words.Printable(d.Names()))
		}
	}
	return nil
}
