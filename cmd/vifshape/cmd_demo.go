package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/trial"
	"github.com/vifshape/vifshape/hierarchy"
)

type demoOptions struct {
	keep, remove, json bool
	time               time.Duration
}

func newDemoCommand(e *env) *cobra.Command {
	var o demoOptions
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show all of it on real packets, in network namespaces of its own",
		Long: `Demo makes two network namespaces and a cable between them, applies a policy of
three levels there, starts senders inside its branches and one outside all of
them, and prints what arrives at the far end beside what should: the ideal
allocation for what the senders want. Meanwhile it changes one rate. Then the far end
sends, and it prints what arrives inside the branches. It ends with a verdict for
every branch in both directions. It needs nothing but this program and root, and
leaves the interfaces of this machine alone.

EXIT STATUS
  0    every branch was within 5% of the ideal allocation
  1    one was not, or an error
  5    root is needed, or root lacks a capability that the message names
  64   wrong flags or arguments
  130  interrupted; everything was removed`,
		Args: args(0, 0, ""),
		RunE: interruptible(func(c *cobra.Command, _ []string) error {
			if o.remove {
				return trial.RemoveDemo(e.runDir)
			}
			return e.demo(c.Context(), o)
		}),
	}
	f := c.Flags()
	f.BoolVar(&o.keep, "keep", false, "leave the namespaces and the tree standing, to look around")
	f.BoolVar(&o.remove, "remove", false, "remove what --keep left")
	f.BoolVar(&o.json, "json", false, "print the verdict as JSON, and nothing else")
	f.DurationVar(&o.time, "time", 18*time.Second, fmt.Sprintf("send and receive for `TIME`; at least %v", trial.DemoLeast))
	c.AddCommand(newDemoSendCommand(), newDemoReceiveCommand())
	return c
}

// demoJSON is the stable form of the demo.
type demoJSON struct {
	Holds  bool               `json:"holds"`
	Within float64            `json:"within_percent"`
	Phases []*trial.DemoPhase `json:"phases"`
}

func (e *env) demo(ctx context.Context, o demoOptions) error {
	if o.time < trial.DemoLeast {
		return usagef("--time %v is too short to measure anything: write at least %v", o.time, trial.DemoLeast)
	}
	if err := trial.Standing(); o.keep && err != nil {
		return err
	}
	out := e.stdout // the live table
	if o.json {
		out = io.Discard
	}
	begun := false
	live := trial.DemoOptions{
		RunDir: e.runDir, Self: selfPath, Stderr: e.stderr, Time: o.time, Tell: e.tell,
		Begin: func(p *trial.DemoPhase) {
			switch {
			case p.Receives:
				fmt.Fprintf(out, "\nNow the far end sends. What arrives inside the branches, in mbit/s:\n\n")
			case !begun:
				fmt.Fprintf(out, "What arrives at the far end of eth0, in mbit/s:\n\n")
			}
			begun = true
			writeHead(out, p)
		},
		Tick: func(at time.Duration, rates []hierarchy.Bandwidth) {
			line := fmt.Sprintf("%9.0fs", at.Seconds())
			for _, r := range rates {
				line += column(mbit(r))
			}
			fmt.Fprintln(out, line)
		},
		Changing: func(from, to string) {
			fmt.Fprintf(out, "\nThe rate of eth0/guests is changed from %s to %s, while all are sending:\n\n", from, to)
		},
		Changed: func(plans []hierarchy.Plan) error {
			for _, p := range plans {
				if err := writePlan(out, p); err != nil {
					return err
				}
			}
			_, err := fmt.Fprintln(out)
			return err
		},
	}
	phases, far, err := trial.Demo(ctx, live, o.keep)
	if err != nil {
		return err
	}
	err = e.verdict(out, phases, o)
	if o.keep {
		fmt.Fprintf(out, `
The network stands until "vifshape demo --remove". Look around with
  nsenter --net=/run/netns/%[1]s vifshape show
  nsenter --net=/run/netns/%[1]s vifshape run eth0/guests/bob -- ping %[2]s
`, trial.DemoName, far)
	}
	return err
}

// writeHead prints what every branch should get.
func writeHead(out io.Writer, p *trial.DemoPhase) {
	rows := [4]string{"", "guaranteed", "ceiling", "ideal"}
	for _, r := range p.Results {
		_, name, _ := strings.Cut(string(r.Path), "/")
		rows[0] += column(name)
		rows[1] += column(mbit(r.Rate))
		rows[2] += column(mbit(r.Ceil))
		rows[3] += column(mbit(r.Ideal))
	}
	fmt.Fprintf(out, "%10s%s\n", "", rows[0])
	for i, head := range []string{"guaranteed", "ceiling", "ideal"} {
		fmt.Fprintf(out, "%-10s%s\n", head, strings.TrimPrefix(rows[i+1], head))
	}
}

// selfPath is this program, whatever it is called.
const selfPath = "/proc/self/exe"

// newDemoSendCommand is what the demo starts inside branches.
func newDemoSendCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "send PROTOCOL TO FLOWS RATE NAME",
		Short:  "Send until standard input ends",
		Hidden: true,
		Args:   cobra.ExactArgs(5),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			return trial.SendUntil(c.Context(), a, os.Stdin)
		}),
	}
}

// newDemoReceiveCommand is what the demo starts inside branches, too.
func newDemoReceiveCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "receive PORT NAME",
		Short:  "Receive until standard input ends, and count with each of its lines",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			port, err := strconv.ParseUint(a[0], 10, 16)
			if err != nil {
				return usagef("%q is no port", a[0])
			}
			return trial.ReceiveUntil(c.Context(), uint16(port), os.Stdin, os.Stdout)
		}),
	}
}

func column(s string) string { return fmt.Sprintf("%14s", s) }

func mbit(b hierarchy.Bandwidth) string {
	return fmt.Sprintf("%.1f", float64(b)/float64(hierarchy.Mbit))
}

// verdict prints what every branch got beside what it should have got.
func (e *env) verdict(out io.Writer, phases []*trial.DemoPhase, o demoOptions) error {
	holds := true
	for _, p := range phases {
		for _, r := range p.Results {
			holds = holds && r.Holds
		}
	}
	if o.json {
		err := e.json(demoJSON{holds, trial.DemoWithin, phases})
		if err != nil {
			return err
		}
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nBRANCH\tIDEAL\tMEASURED\tERROR\tVERDICT")
	for i, p := range phases {
		switch {
		case p.Receives:
			fmt.Fprintf(t, "receiving\t\t\t\t\n")
		case i > 0:
			fmt.Fprintf(t, "after the change\t\t\t\t\n")
		default:
			fmt.Fprintf(t, "sending\t\t\t\t\n")
		}
		for _, r := range p.Results {
			verdict := "holds"
			if !r.Holds {
				verdict = "DOES NOT HOLD"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%+.1f%%\t%s\n", r.Path, mbit(r.Ideal), mbit(r.Measured), r.Error, verdict)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if !holds {
		e.notef("a branch is more than %d%% away from the ideal allocation", trial.DemoWithin)
		e.hintf("where other programs take the processors meanwhile, a longer run tells more: `vifshape demo --time 60s`")
		return codeError(exitError)
	}
	fmt.Fprintf(out, "\nEvery branch is within %d%% of the ideal allocation, in both directions.\n", trial.DemoWithin)
	return nil
}
