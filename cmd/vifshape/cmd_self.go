package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

func newSelfCommand(e *env) *cobra.Command {
	o := showOptions{sample: 500 * time.Millisecond}
	c := &cobra.Command{
		Use:   "self",
		Short: "Show the branch that this process is in, and what it gets",
		Long: `Self prints the branch that the calling process sends in, one line for each
interface that it has one on: guarantee and ceiling, what was sent and dropped,
what is waiting, what is being sent now, the queue, and what bound it; where what the
interface receives is shaped, the same of that behind a slash; and so the branches below
into which matches give packets of this one. All of a branch's processes share these.
Self needs no privileges and works in a program that run started, and in its children.

It goes by the cgroup of the process. In a container that hides the cgroups above
its own, it goes by VIFSHAPE_BRANCH, which run sets, and says so.

EXIT STATUS
  0   done
  1   an error, this process is in no branch, or the kernel has not all that the
      last apply made
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
	Branches []*observe.Self `json:"branches"`
}

func (e *env) self(ctx context.Context, o showOptions) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	out := selfJSON{Branches: []*observe.Self{}}
	var rests []string // of the interfaces on which it has no branch
	var own []*observe.Own
	err = e.each(m, "", func(iface string) error {
		x, err := observe.OwnBranch(ctx, m, iface)
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
		v, err := x.View()
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
	return observe.OutsideOf(m, rests)
}

func (s selfJSON) write(e *env) error {
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	var all []*observe.Branch
	for _, v := range s.Branches {
		all = append(append(all, v.Branch), v.Matched...)
	}
	c := columnsOf(all)
	fmt.Fprintln(t, c.head()+"\tBOUND BY")
	for _, v := range s.Branches {
		fmt.Fprintf(t, "%s\t%s\t%s (%s)\n", v.Path, c.row(v.Branch), words.Printable(v.From), v.Way)
		for _, b := range v.Matched {
			fmt.Fprintf(t, "%s\t%s\tmatch %s\n", b.Path, c.row(b), words.Matches(b.Match))
		}
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
