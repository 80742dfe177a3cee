package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
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

// lsJSON is the stable form of ls.
type lsJSON struct {
	Interfaces []*observe.Link `json:"interfaces"`
}

func (e *env) ls(ctx context.Context, asJSON bool) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	views, err := observe.Links(ctx, m)
	if err != nil {
		return err
	}
	if asJSON {
		return e.json(lsJSON{views})
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	writeViews(t, views)
	return t.Flush()
}

// writeViews prints the table, its columns separated by tabs.
func writeViews(t io.Writer, views []*observe.Link) {
	fmt.Fprintln(t, "NAME\tKIND\tSTATE\tSPEED\tVIA\tMTU\tQUEUES\tQDISC\tSHAPED BY")
	for _, v := range observe.Grown(views) {
		writeLink(t, v, "", "")
	}
}

// writeLink prints an interface, its branches, and what lies on it. The first line
// starts with first, the others with rest.
func writeLink(t io.Writer, v *observe.Link, first, rest string) {
	speed, shaper := "-", "-"
	if v.Speed != 0 {
		speed = words.Short(v.Speed)
	}
	switch {
	case v.ReceivesFor != "":
		shaper = "receives for " + words.Printable(v.ReceivesFor)
	case v.Shaper != "":
		shaper = v.Shaper
	}
	if len(v.Lost) > 0 {
		shaper = strings.TrimPrefix(shaper+": ", "-: ") + strings.Join(v.Lost, "; ")
	}
	fmt.Fprintf(t, "%s%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", first, words.Printable(v.Name), v.Link.What(), stateText(v.Link), speed, viaText(v.Link), v.MTU, v.TxQueues, v.Qdisc, shaper)
	line := ""
	if len(v.Above) > 0 {
		line = "│"
	}
	for _, b := range v.Branches {
		if b.ID.Minor() != hierarchy.RootMinor {
			rate, ceil := words.Short(b.Rate), words.Short(b.Ceil)
			if b.Ingress != nil {
				rate, ceil = rate+"/"+words.Short(b.Ingress.Rate), ceil+"/"+words.Short(b.Ingress.Ceil)
			}
			fmt.Fprintf(t, "%s%s%s\tbranch %v\t\t%s\t\t\t\t\tup to %s\n", rest, line, words.Indented(b.Path)[len(line)/len("│"):], b.ID, rate, ceil)
		}
	}
	for i, a := range v.Above {
		if i < len(v.Above)-1 {
			writeLink(t, a, rest+"├─", rest+"│ ")
		} else {
			writeLink(t, a, rest+"└─", rest+"  ")
		}
	}
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
