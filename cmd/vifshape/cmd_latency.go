package main

import (
	"context"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/latency"
)

type latencyOptions struct {
	sample time.Duration
	json   bool
}

func newLatencyCommand(e *env) *cobra.Command {
	var o latencyOptions
	c := &cobra.Command{
		Use:   "latency [PATH]",
		Short: "Measure how long packets wait in each branch, and why some are dropped",
		Long: `Latency takes the time of each packet from where the tree gets it to where the tree hands
it to the device, for five seconds, and prints for every branch, or those from PATH down,
how many left, how long they waited (half of them, 99 of 100, and the longest), how many
wait in the end, and how many were dropped, for which reasons. A branch with others below
it has the packets of all of them. Where what is received is shaped, there is a table of
that, too.

  vifshape latency                    every interface that is shaped
  vifshape latency eth0/web           a branch, and all below it
  vifshape latency --sample 1m eth0

What takes the time are programs in the kernel. They are there while it measures, and go
with it, however it ends. What they take of the processors the kernel measures, and it is
printed; they run for packets of other interfaces, too, which they let be. All in all it is
about a microsecond a packet ("vifshape help figures").

A packet that is sent in segments is one. Times are within 4 %. Of some packets it cannot be
told how long they waited, and it is said of how many: of those that a queue divides (cake,
tbf) where the kernel has no fexit, by which the parts are followed, or copies (netem); of
more than 65,536 that wait at once; where a program was not called.

Reasons are the kernel's, and before Linux 5.17 there are none. QDISC_DROP is all that most
queues say of what they do not keep; newer kernels tell of some whether they were full
(QDISC_OVERLIMIT) or slowed senders down (QDISC_CONGESTED). What ECN marks is not dropped,
and not counted here.

It takes Linux 5.11 or later that describes its own types (BTF: distributions' do, user-mode
Linux does not), and root or CAP_BPF and CAP_PERFMON. "vifshape show" and "vifshape explain"
work without.

EXIT STATUS
  0    done
  1    an error, there is no such branch, the kernel cannot measure, or has not all
       that the last apply made
  5    root is needed, or root lacks a capability that the message names
  64   wrong flags or arguments
  130  interrupted`,
		Args: args(0, 1, "one path at most"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			if o.sample <= 0 {
				return usagef("--sample %v is no time to measure: write one like 5s", o.sample)
			}
			p, err := optionalPath(a)
			if err != nil {
				return err
			}
			return e.latency(c.Context(), p, o)
		}),
	}
	c.Flags().DurationVar(&o.sample, "sample", 5*time.Second, "measure for `TIME`")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return c
}

func (e *env) latency(ctx context.Context, path hierarchy.Path, o latencyOptions) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	var all []*observe.Timed
	lost := e.each(m, path, func(iface string) error {
		t, err := observe.TimedOf(ctx, m, iface)
		if err != nil {
			return err
		}
		all = append(all, t)
		return t.CheckPath(path)
	})
	if lost != nil && !onlyLost(lost) {
		return lost
	}
	out := &observe.Latencies{Ports: []*observe.Latency{}}
	if len(all) == 0 && lost == nil {
		e.notef("no interface is shaped by vifshape in this network namespace")
	}
	if len(all) > 0 {
		if out, err = observe.Measure(ctx, all, o.sample); err != nil {
			return err
		}
	}
	for _, p := range out.Ports {
		p.Branches = slices.DeleteFunc(p.Branches, func(b observe.LatencyBranch) bool { return path != "" && !b.Path.Below(path) })
	}
	if o.json {
		if err := e.json(out); err != nil {
			return err
		}
		return lost
	}
	for _, p := range out.Ports {
		if err := e.writeLatency(p, out); err != nil {
			return err
		}
	}
	if len(out.Ports) > 0 {
		e.printf("%s\n", costText(out))
	}
	return lost
}

// writeLatency prints a table of one direction, and below it why packets were dropped, or
// their time was not taken.
func (e *env) writeLatency(p *observe.Latency, all *observe.Latencies) error {
	verb := "sends"
	if p.Direction == hierarchy.Receive {
		verb = "receives"
	}
	e.printf("what %s %s, for %s\n", p.Interface, verb, timeText(all.Took))
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "BRANCH\tPACKETS\tP50\tP99\tLONGEST\tWAITING\tDROPPED")
	for _, b := range p.Branches {
		times := []any{"-", "-", "-"}
		if b.Packets > 0 {
			times = []any{timeText(b.P50), timeText(b.P99), timeText(b.Longest)}
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%d\t%d\n", append(append([]any{words.Indented(b.Path), b.Packets}, times...), b.Waiting, b.Dropped())...)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, b := range p.Branches {
		if b.Kind == "" {
			continue // its leaves say it
		}
		for _, d := range b.Drops {
			reason := ""
			if d.Reason != "" {
				reason = " (" + d.Reason + ")"
			}
			e.printf("  %s: %d dropped: %s%s\n", b.Path, d.Packets, d.Means, reason)
		}
		if b.Untimed > 0 {
			why := ""
			if all.Whole != "" && latency.Divides(b.Kind) {
				why = fmt.Sprintf(": %s divides packets, and %s", b.Kind, all.Whole)
			}
			e.printf("  %s: of %d more it cannot be told how long they waited%s\n", b.Path, b.Untimed, why)
		}
	}
	return nil
}

// costText says what measuring took.
func costText(l *observe.Latencies) string {
	s := "what measuring took is not known: " + l.Unknown
	if l.Cost != nil {
		s = fmt.Sprintf("measuring took %s of the processors", timeText(*l.Cost))
	}
	if l.Runs > 0 {
		s += fmt.Sprintf(": a packet takes two runs of its programs, each %s on average", timeText(*l.Cost/time.Duration(l.Runs)))
	}
	if l.Missed > 0 {
		s += fmt.Sprintf("; %d times one could not run, as it ran already", l.Missed)
	}
	return s
}

// timeText is a time in three figures.
func timeText(d time.Duration) string {
	for step := time.Duration(1); step <= time.Second; step *= 10 {
		if d < 1000*step {
			return d.Round(step).String()
		}
	}
	return d.Round(time.Second).String()
}
