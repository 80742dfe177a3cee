package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/qdisc"
)

type showOptions struct {
	json   bool
	sample time.Duration
}

func newShowCommand(e *env) *cobra.Command {
	var o showOptions
	c := &cobra.Command{
		Use:   "show [PATH]",
		Short: "Show the tree as the kernel has it, with counters, bindings and processes",
		Long: `Show reads the kernel and prints every branch, or those from PATH down: its
guarantee and ceiling, its queue, what it has sent and dropped, what is waiting,
and whose traffic it carries. With --sample it looks twice and also prints what
each branch is sending. It needs no privileges; without them it cannot read the
bindings in force, and prints those of the policy.

Where what the interface receives is shaped as well, each column has both directions,
as in 10mbit/30mbit: first what is sent, then what is received. A queue and a priority
that both share stand there once. Below is how full the table of flows is by which
received packets are told apart.

A binding says how many processes it names, and how many of the sockets that they
have open carry the branch: what these send by the interface is the branch's. The
others are listed with the branch whose they are. Such a socket was opened before its
process came here, or by somebody else who handed it on; attach carries it over. Not
counted is what has no address yet, and has not sent. A process in another network
namespace has its sockets there: what is forwarded for it is the branch's where its
interface is bound. vifshape prove tries it out.

EXIT STATUS
  0   done
  1   an error, there is no such branch, or the kernel has not all that the last
      apply made: others may take a tree away
  64  wrong flags or arguments`,
		Args: args(0, 1, "one path at most"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			if c.Flags().Changed("sample") && o.sample <= 0 {
				return usagef("--sample %v is no time to wait: write one like 1s", o.sample)
			}
			p, err := optionalPath(a)
			if err != nil {
				return err
			}
			return e.show(c.Context(), p, o)
		}),
	}
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	c.Flags().DurationVar(&o.sample, "sample", 0, "look twice, `TIME` apart, and print what is being sent")
	return c
}

// showJSON is the stable form of show.
type showJSON struct {
	Interfaces []*observe.Tree `json:"interfaces"`
}

func (e *env) show(ctx context.Context, path hierarchy.Path, o showOptions) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	m.TellUnconfirmed()
	out := showJSON{Interfaces: []*observe.Tree{}}
	err = e.each(m, path, func(iface string) error {
		v, err := observe.ViewTree(ctx, m, iface, o.sample)
		if v == nil {
			return err
		}
		if path != "" && len(v.Branches) > 0 {
			var all []hierarchy.Path
			for _, b := range v.Branches {
				all = append(all, b.Path)
			}
			v.Branches = slices.DeleteFunc(v.Branches, func(b *observe.Branch) bool { return !b.Path.Below(path) })
			if len(v.Branches) == 0 {
				return hierarchy.NoBranch(path, all)
			}
		}
		out.Interfaces = append(out.Interfaces, v)
		return err
	})
	if err != nil && !onlyLost(err) {
		return err
	}
	if len(out.Interfaces) == 0 {
		e.notef("no interface is shaped by vifshape in this network namespace")
	}
	if o.json {
		return errors.Join(e.json(out), err)
	}
	for _, v := range out.Interfaces {
		if len(v.Branches) == 0 {
			continue // its tree is lost, which is said as the error
		}
		if err := writeShown(e.stdout, v); err != nil {
			return err
		}
	}
	return err
}

// each looks at the interface of a path or, where that is empty, at all that have a
// policy. Of those the user is told which are not there, and what they have lost.
func (e *env) each(m *shaper.Machine, path hierarchy.Path, look func(iface string) error) error {
	if path != "" {
		return look(path.Interface())
	}
	ifaces, err := m.Ours()
	if err != nil {
		return err
	}
	var lost error
	for _, i := range ifaces {
		err := look(i)
		switch {
		case onlyLost(err):
			e.report(err)
			lost = codeError(exitError)
		case err != nil && !e.noTree(m, i, err):
			return err
		}
	}
	return lost
}

// noTree says whether err is only that an interface with a policy or limits is not there,
// and tells the user.
func (e *env) noTree(m *shaper.Machine, iface string, err error) bool {
	var gone *link.NotFoundError
	if !errors.As(err, &gone) {
		return false
	}
	has := "a policy"
	if r, err := m.Store.Load(iface); err == nil && r.Policy == record.NoPolicy {
		has = "limits"
	}
	e.notef("%s has %s and is not there now", iface, has)
	return true
}

// writeShown prints a tree as a table.
func writeShown(w io.Writer, v *observe.Tree) error {
	fmt.Fprintf(w, "%s: bound by %s", v.Interface, v.BoundBy())
	if v.Policy != "" {
		fmt.Fprintf(w, ", from %s", words.Printable(v.Policy))
		if v.Selector != "" {
			fmt.Fprintf(w, " by %q", v.Selector)
		}
	}
	if v.Link != 0 {
		fmt.Fprintf(w, ", of a link of %v", v.Link)
	}
	if len(v.Branches) > 0 && v.Branches[0].Link != (hierarchy.LinkLayer{}) {
		fmt.Fprintf(w, ", packets counted with %v", v.Branches[0].Link)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	c := columnsOf(v.Branches)
	fmt.Fprintln(t, c.head())
	for _, b := range v.Branches {
		fmt.Fprintf(t, "%s\t%s\n", words.Indented(b.Path), c.row(b))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if v.Flows != nil {
		fmt.Fprintf(w, "  %s: %v\n", v.Interface, v.Flows)
	}
	for _, b := range v.Branches {
		for _, x := range b.Bound {
			fmt.Fprintf(w, "  %s: %s\n", b.Path, &x)
			for _, line := range x.Reasons() {
				fmt.Fprintf(w, "    %s\n", line)
			}
		}
		if len(b.Match) > 0 {
			fmt.Fprintf(w, "  %s: match %s\n", b.Path, words.Matches(b.Match))
		}
		for _, text := range b.NotHeld {
			fmt.Fprintf(w, "  %s: not held: %s\n", b.Path, words.Printable(text))
		}
		writeDelegation(w, b)
	}
	return nil
}

// shown are the columns of branches in show and self.
type shown struct {
	receives bool // both directions, as sent/received
	sampled  bool // what is being sent now, too
}

func columnsOf(all []*observe.Branch) (c shown) {
	for _, b := range all {
		c.receives = c.receives || b.Ingress != nil
		c.sampled = c.sampled || b.Sending != nil
	}
	return c
}

func (c shown) head() string {
	sent, sending := "SENT", "SENDING"
	if c.receives {
		sent, sending = "SENT/RECEIVED", "SENDING/RECEIVING"
	}
	head := "BRANCH\tCLASS\tRATE\tCEIL\tPRIO\t" + sent + "\tDROPPED\tWAITING"
	if c.sampled {
		head += "\t" + sending
	}
	return head + "\tQDISC"
}

// row are the cells behind a branch's name.
func (c shown) row(b *observe.Branch) string {
	in := b.Ingress
	if in == nil {
		in = &observe.Received{} // printed as "-", if at all
	}
	both := func(sent, received string) string {
		switch {
		case !c.receives:
			return sent
		case b.Ingress == nil:
			received = "-"
		}
		return sent + "/" + received
	}
	// word by word, as of two queues of one kind that differ in a limit
	shared := func(sent, received string) string {
		s, r := strings.Fields(sent), strings.Fields(received)
		if b.Ingress == nil || s[0] != r[0] || len(s) != len(r) {
			return both(sent, received)
		}
		for i := range s {
			if s[i] != r[i] {
				s[i] += "/" + r[i]
			}
		}
		return strings.Join(s, " ")
	}
	cells := []string{
		b.ID.String(), both(words.Short(b.Rate), words.Short(in.Rate)), both(words.Short(b.Ceil), words.Short(in.Ceil)),
		shared(prioText(b.Prio, b.Qdisc), prioText(in.Prio, in.Qdisc)), both(words.Bytes(b.Bytes), words.Bytes(in.Bytes)),
		both(fmt.Sprint(b.Drops), fmt.Sprint(in.Drops)), both(words.Bytes(uint64(b.Backlog)), words.Bytes(uint64(in.Backlog))),
	}
	if c.sampled {
		cells = append(cells, both(bandwidthText(b.Sending), bandwidthText(in.Receiving)))
	}
	return strings.Join(append(cells, shared(queueText(b.Qdisc), queueText(in.Qdisc))), "\t")
}

// Of an inner branch, which has no queue, neither means anything.
func prioText(prio uint8, of *hierarchy.Qdisc) string {
	if of == nil {
		return "-"
	}
	return fmt.Sprint(prio)
}

func queueText(q *hierarchy.Qdisc) string {
	if q == nil {
		return "-"
	}
	return qdisc.Text(*q)
}

func bandwidthText(b *hierarchy.Bandwidth) string {
	if b == nil {
		return "-"
	}
	return words.Short(*b)
}

// writeDelegation prints a line for each thing to say of it.
func writeDelegation(w io.Writer, b *observe.Branch) {
	if len(b.Delegate) > 0 {
		fmt.Fprintf(w, "  %s: delegated to %s\n", b.Path, words.Printable(record.Delegated{To: b.Delegate}.Names()))
	}
	switch {
	case b.Added == nil:
	case b.Added.Limit != "":
		fmt.Fprintf(w, "  %s: a limit on %s\n", b.Path, words.Printable(b.Added.Limit))
	case b.Added.By == 0:
		fmt.Fprintf(w, "  %s: added at run time\n", b.Path)
	default:
		fmt.Fprintf(w, "  %s: added at run time by user %d\n", b.Path, b.Added.By)
	}
}

// onlyLost says whether err is that something is lost, which keeps nobody from looking
// at the rest.
func onlyLost(err error) bool {
	var lost *shaper.LostError
	var said codeError // by each
	return errors.As(err, &lost) || errors.As(err, &said)
}
