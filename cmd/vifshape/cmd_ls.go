package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
)

func newLsCommand(e *env) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the interfaces of this network namespace, what they are, and our branches",
		Long: `Ls lists every network interface of this network namespace: what it really is
(physical, virtual, tunnel, bridge, bond, vlan ...), its speed, whether it has a
carrier, its MTU and queues, and who shapes it; below those that vifshape shapes,
their branches. It needs no privileges.

EXIT STATUS
  0  done
  1  an error
  2  wrong flags or arguments`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error { return e.ls(c.Context(), asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// linkView is an interface in the form of ls.
type linkView struct {
	tc.Link
	Shaper   string            `json:"shaped_by"` // "vifshape", the kind of a foreign root qdisc, or ""
	Branches []hierarchy.Class `json:"branches,omitempty"`
}

func (e *env) ls(ctx context.Context, asJSON bool) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	links, err := m.conn.Links()
	if err != nil {
		return err
	}
	views := make([]linkView, 0, len(links))
	for _, l := range links {
		v, err := m.linkView(ctx, l)
		if err != nil {
			return err
		}
		views = append(views, v)
	}
	if asJSON {
		return e.json(struct {
			Interfaces []linkView `json:"interfaces"`
		}{views})
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tKIND\tSPEED\tCARRIER\tMTU\tQUEUES\tQDISC\tSHAPED BY")
	for _, v := range views {
		speed, carrier, shaper := "-", "no", "-"
		if v.Speed != 0 {
			speed = short(v.Speed)
		}
		if v.Carrier {
			carrier = "yes"
		}
		if v.Shaper != "" {
			shaper = v.Shaper
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", v.Name, kindText(v.Link), speed, carrier, v.MTU, v.TxQueues, v.Qdisc, shaper)
		for _, b := range v.Branches {
			if b.ID.Minor() != hierarchy.RootMinor {
				fmt.Fprintf(t, "%s\tbranch %v\t%s\t\t\t\t\tup to %s\n", indented(b.Path), b.ID, short(b.Rate), short(b.Ceil))
			}
		}
	}
	return t.Flush()
}

// linkView finds out who shapes an interface.
func (m *machine) linkView(ctx context.Context, l tc.Link) (linkView, error) {
	v := linkView{Link: l}
	d, err := m.conn.Device(l.Name)
	if err != nil {
		return v, err
	}
	var s hierarchy.State
	if err := d.Read(ctx, &s); err != nil {
		return v, err
	}
	switch {
	case s.Root.Ours():
		r, err := m.record(l.Name, d.Index)
		if err != nil {
			return v, err
		}
		v.Shaper = "vifshape"
		v.Branches = ordered(s.Classes, r)
	case s.Root.Foreign():
		v.Shaper = fmt.Sprintf("%s %v", s.Root.Kind, s.Root.Handle)
	}
	return v, nil
}

// ordered gives classes their names and the order of a tree.
func ordered(classes []hierarchy.Class, r *record) []hierarchy.Class {
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
func kindText(l tc.Link) string {
	n := string(l.Nature)
	if l.Kind != "" && !strings.EqualFold(l.Kind, n) {
		n += " (" + l.Kind + ")"
	}
	return n
}
