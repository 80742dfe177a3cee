package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

func newLsCommand(e *env) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the interfaces of this network namespace, what they are, and our branches",
		Long: `Ls lists every network interface of this network namespace, as a tree: what lies
on another one (a VLAN, a macvlan, a bound tunnel) stands below it. It says what
each really is (physical, virtual, tunnel, bridge, bond, vlan ...), its state and
speed, what its packets leave by, its MTU and queues, and who shapes it; below
those that vifshape shapes, their branches. It needs no privileges, but for the
names of interfaces in other namespaces.

VIA is what carries the packets: the interface below, the members of a bond or
bridge, "route" for a tunnel that takes whatever interface the route to its other
end does; for a veth it is its peer.

EXIT STATUS
  0   done
  1   an error
  64  wrong flags or arguments`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error { return e.ls(c.Context(), asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// viewLink is an interface in the form of ls.
type linkView struct {
	link.Link
	Shaper   string            `json:"shaped_by"` // "vifshape", the kind of a foreign root qdisc, or ""
	Branches []hierarchy.Class `json:"branches,omitempty"`
	Lost     []string          `json:"lost,omitempty"` // what the kernel has not that the last apply made

	above []*linkView // what lies on it
}

func (e *env) ls(ctx context.Context, asJSON bool) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	links, err := link.List(m.Conn)
	if err != nil {
		return err
	}
	roots, err := tc.Roots(m.Conn)
	if err != nil {
		return err
	}
	views := make([]*linkView, 0, len(links))
	for _, l := range links {
		v, err := viewLink(m, ctx, l, roots[l.Index])
		if vanished(err) {
			continue
		}
		if err != nil {
			return err
		}
		views = append(views, v)
	}
	if asJSON {
		return e.json(struct {
			Interfaces []*linkView `json:"interfaces"`
		}{views})
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	writeViews(t, views)
	return t.Flush()
}

// writeViews prints the table, its columns separated by tabs.
func writeViews(t io.Writer, views []*linkView) {
	fmt.Fprintln(t, "NAME\tKIND\tSTATE\tSPEED\tVIA\tMTU\tQUEUES\tQDISC\tSHAPED BY")
	for _, v := range grown(views) {
		v.write(t, "", "")
	}
}

// viewLink finds out who shapes an interface.
func viewLink(m *shaper.Machine, ctx context.Context, l link.Link, root hierarchy.Root) (*linkView, error) {
	v := &linkView{Link: l}
	if root.Foreign() {
		v.Shaper = fmt.Sprintf("%s %v", root.Kind, root.Handle)
	}
	if !root.Ours() {
		// A record that cannot be read is reported by who needs it.
		if r, err := m.Record(l.Name, uint32(l.Index)); err == nil && r.Policy != "" {
			v.Lost = shaper.TreeLost(r, root).What
		}
		return v, nil
	}
	d, err := tc.Find(m.Conn, l.Name)
	if err != nil {
		return nil, err
	}
	var s hierarchy.State
	if err := d.Read(ctx, &s); err != nil {
		return nil, err
	}
	r, err := m.Record(l.Name, d.Index)
	if err != nil {
		return nil, err
	}
	v.Shaper = "vifshape"
	v.Branches = ordered(s.On(d.Port()).Classes, r)
	x, err := m.Interface(l.Name, "")
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	lost := (*shaper.LostError)(nil)
	if err := x.Losses(s); errors.As(err, &lost) {
		v.Lost = lost.What
	} else if err != nil {
		return nil, err
	}
	return v, nil
}

// vanished says whether an error is that an interface is not there any more: those
// of containers come and go.
func vanished(err error) bool {
	var no *link.NotFoundError
	return errors.As(err, &no) || errors.Is(err, rtnl.ErrGone)
}

// grown puts what lies on another interface below it and gives back those that
// lie on none, or on several.
func grown(views []*linkView) []*linkView {
	at := map[int]*linkView{}
	for _, v := range views {
		at[v.Index] = v
	}
	var tops []*linkView
	for _, v := range views {
		lower := at[v.Lower]
		if v.LowerNetNS != -1 || v.Peer() || lower.liesOn(v, at) {
			lower = nil
		}
		if lower == nil {
			tops = append(tops, v)
		} else {
			lower.above = append(lower.above, v)
		}
	}
	return tops
}

// liesOn says whether o is v or below it: while it was listed a tree may have been
// turned around.
func (v *linkView) liesOn(o *linkView, at map[int]*linkView) bool {
	for n := 0; v != nil && n <= len(at); n++ {
		if v == o {
			return true
		}
		v = at[v.Lower]
	}
	return false
}

// write prints an interface, its branches, and what lies on it. The first line
// starts with first, the others with rest.
func (v *linkView) write(t io.Writer, first, rest string) {
	speed, shaper := "-", "-"
	if v.Speed != 0 {
		speed = words.Short(v.Speed)
	}
	if v.Shaper != "" {
		shaper = v.Shaper
	}
	if len(v.Lost) > 0 {
		shaper = strings.TrimPrefix(shaper+": ", "-: ") + strings.Join(v.Lost, "; ")
	}
	fmt.Fprintf(t, "%s%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", first, words.Printable(v.Name), kindText(v.Link), stateText(v.Link), speed, viaText(v.Link), v.MTU, v.TxQueues, v.Qdisc, shaper)
	line := ""
	if len(v.above) > 0 {
		line = "│"
	}
	for _, b := range v.Branches {
		if b.ID.Minor() != hierarchy.RootMinor {
			fmt.Fprintf(t, "%s%s%s\tbranch %v\t\t%s\t\t\t\t\tup to %s\n", rest, line, words.Indented(b.Path)[len(line)/len("│"):], b.ID, words.Short(b.Rate), words.Short(b.Ceil))
		}
	}
	for i, a := range v.above {
		if i < len(v.above)-1 {
			a.write(t, rest+"├─", rest+"│ ")
		} else {
			a.write(t, rest+"└─", rest+"  ")
		}
	}
}

// ordered gives classes their names and the order of a tree.
func ordered(classes []hierarchy.Class, r *record.Record) []hierarchy.Class {
	names := r.IDs.Names(r.Interface)
	v := treeView{}
	for _, c := range classes {
		c.Path = names[c.ID]
		v.Branches = append(v.Branches, &branchView{Class: c})
	}
	v.order(r.Order)
	out := make([]hierarchy.Class, len(v.Branches))
	for i, b := range v.Branches {
		out[i] = b.Class
	}
	return out
}

// kindText is the nature of an interface, with the kernel's word for its kind.
func kindText(l link.Link) string {
	n := string(l.Nature)
	if l.Kind != "" && !strings.EqualFold(l.Kind, n) {
		n += " (" + l.Kind + ")"
	}
	return n
}

// stateText says whether an interface can send, and if not, why.
func stateText(l link.Link) string {
	switch {
	case !l.Up:
		return "down"
	case !l.Carrier:
		return "no carrier"
	case l.OperState == "dormant" || l.OperState == "testing":
		return l.OperState
	}
	return "up"
}

// viaText is what the packets of an interface leave by.
func viaText(l link.Link) string {
	const most = 4
	var s []string
	if l.Lower != 0 {
		name := l.LowerName
		if name == "" {
			name = fmt.Sprintf("if%d", l.Lower)
		}
		if l.Peer() {
			name = "peer " + name
		}
		if l.LowerNetNS != -1 {
			name += fmt.Sprintf(" (netns %d)", l.LowerNetNS)
		}
		s = append(s, name)
	}
	s = append(s, l.Members[:min(most, len(l.Members))]...)
	if n := len(l.Members) - most; n > 0 {
		s = append(s, fmt.Sprintf("+%d", n))
	}
	switch {
	case l.ByRoute:
		return "route"
	case len(s) == 0:
		return "-"
	}
	return words.Printable(strings.Join(s, " "))
}
