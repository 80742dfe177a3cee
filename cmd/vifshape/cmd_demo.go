package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// demoPolicy is what the demo applies; %s is the rate that it changes in flight.
// All that borrow lie equally deep, where HTB keeps to the ideal allocation best
// (see hierarchy.Tree.Ideal).
const demoPolicy = `version = 1

[interface.eth0]
rate = "100mbit"

[interface.eth0.office]
rate = "50mbit"

[interface.eth0.office.calls]
rate = "10mbit"
prio = 0                # in front of the others when there is bandwidth to spare

[interface.eth0.office.work]
rate = "40mbit"

[interface.eth0.guests]
rate = "%s"
ceil = "70mbit"

[interface.eth0.guests.alice]

[interface.eth0.guests.bob]

[interface.eth0.rest]
rate = "10mbit"
ceil = "10mbit"         # what nothing is bound to never gets more
`

// The rate of eth0/guests before and after the change. After it guarantees take
// the whole link, and nothing is left to borrow.
const demoBefore, demoAfter = "30mbit", "40mbit"

// demoSenders is who sends what into which leaf. The one for the rest is started
// without run: nothing binds it. Calls takes all that it is guaranteed, so that the
// link alone lends: what two lend at once HTB shares less exactly (README.md).
var demoSenders = []demoSender{
	{Path: "eth0/office/calls", Protocol: "udp", Rate: 10 * hierarchy.Mbit, Port: 5001},
	{Path: "eth0/office/work", Protocol: "tcp", Flows: 4, Port: 5002},
	{Path: "eth0/guests/alice", Protocol: "tcp", Flows: 4, Port: 5003},
	{Path: "eth0/guests/bob", Protocol: "udp", Rate: 90 * hierarchy.Mbit, Port: 5004},
	{Path: "eth0/rest", Protocol: "tcp", Flows: 4, Port: 5005},
}

type demoSender struct {
	Path     hierarchy.Path
	Protocol string
	Rate     hierarchy.Bandwidth // what it wants; 0: all it can get
	Flows    int
	Port     uint16
}

// demoWithin is how far from the ideal allocation a branch may be.
const demoWithin = 5 // percent

// demoSettle is how long after a start or a change measuring begins: TCP takes
// its time to find its rate.
const demoSettle = 2 * time.Second

// demoLeast is the least time to send: two phases that settle, and as much again
// to measure, which takes several rounds of the quanta over all that borrow.
const demoLeast = 4 * demoSettle

// demoName is the network namespace that --keep leaves behind; its far end has
// "-far" behind it.
const demoName = "vifshape-demo"

// netNSDir is where names of network namespaces are, for ip netns too.
const netNSDir = "/run/netns"

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
allocation for what the senders want. In the middle it changes one rate. It ends
with a verdict for every branch. It needs nothing but this program and root, and
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
				return e.demoRemove()
			}
			return e.demo(c.Context(), o)
		}),
	}
	f := c.Flags()
	f.BoolVar(&o.keep, "keep", false, "leave the namespaces and the tree standing, to look around")
	f.BoolVar(&o.remove, "remove", false, "remove what --keep left")
	f.BoolVar(&o.json, "json", false, "print the verdict as JSON, and nothing else")
	f.DurationVar(&o.time, "time", 12*time.Second, fmt.Sprintf("how long to send; at least %v", demoLeast))
	c.AddCommand(newDemoSendCommand())
	return c
}

// demoJSON is the stable form of the demo.
type demoJSON struct {
	Holds  bool         `json:"holds"`
	Within float64      `json:"within_percent"`
	Phases []*demoPhase `json:"phases"`
}

// demoResult is the verdict on one branch.
type demoResult struct {
	Path     hierarchy.Path      `json:"path"`
	Rate     hierarchy.Bandwidth `json:"rate"`
	Ceil     hierarchy.Bandwidth `json:"ceil"`
	Ideal    hierarchy.Bandwidth `json:"ideal"`
	Measured hierarchy.Bandwidth `json:"measured"`
	Error    float64             `json:"error_percent"`
	Holds    bool                `json:"holds"`
}

// demoPhase is a stretch of time under one policy.
type demoPhase struct {
	Change  string       `json:"change,omitempty"`
	Results []demoResult `json:"branches"`
}

// demo is the demonstration under way.
type demo struct {
	*env
	out   io.Writer // the live table
	pair  *lab.Pair
	sink  *lab.Sink
	ports []uint16
}

func (e *env) demo(ctx context.Context, o demoOptions) (err error) {
	if o.time < demoLeast {
		return usagef("--time %v is too short to measure anything: write at least %v", o.time, demoLeast)
	}
	if o.keep {
		for _, name := range []string{demoName, demoName + "-far"} {
			if _, err := os.Lstat(filepath.Join(netNSDir, name)); err == nil {
				return fmt.Errorf("a demo stands already, in network namespace %s: `vifshape demo --remove` takes it away", name)
			}
		}
	}
	d := &demo{env: e, out: e.stdout}
	if o.json {
		d.out = io.Discard
	}
	defer func() {
		// A verdict that does not hold is worth a look around as well.
		var verdict codeError
		err = errors.Join(err, d.close(o.keep && (err == nil || errors.As(err, &verdict))))
	}()
	if err := d.open(ctx); err != nil {
		return err
	}
	if err := d.apply(ctx, demoBefore, false); err != nil {
		return err
	}
	stop, err := d.send(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()

	fmt.Fprintf(d.out, "What arrives at the far end of eth0, in mbit/s:\n\n")
	start := time.Now()
	first, err := d.phase(ctx, demoBefore, start, o.time/2)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "\nThe rate of eth0/guests is changed from %s to %s, while all are sending:\n\n", demoBefore, demoAfter)
	if err := d.apply(ctx, demoAfter, true); err != nil {
		return err
	}
	fmt.Fprintln(d.out)
	second, err := d.phase(ctx, demoAfter, start, o.time-o.time/2)
	if err != nil {
		return err
	}
	second.Change = fmt.Sprintf("eth0/guests rate %s -> %s", demoBefore, demoAfter)
	return d.verdict([]*demoPhase{first, second}, o)
}

// demoRemove removes what --keep left.
func (e *env) demoRemove() error {
	near, err := lab.OpenNetNS(filepath.Join(netNSDir, demoName))
	if err != nil {
		return fmt.Errorf("no demo stands: %w", err)
	}
	return errors.Join(e.vacate(near), near.Close(), lab.Forget(demoName), lab.Forget(demoName+"-far"))
}

// vacate removes what vifshape made in a namespace that is about to go.
func (e *env) vacate(n *lab.NetNS) error {
	return n.Do(func() error {
		s, err := record.Open(e.runDir)
		if err != nil {
			return err
		}
		return errors.Join(e.clear(context.Background(), nil), s.Discard())
	})
}

// open makes the network and the listener at its far end.
func (d *demo) open(ctx context.Context) (err error) {
	if d.pair, err = lab.NewPair(lab.PairConfig{}); err != nil {
		return err
	}
	for _, s := range demoSenders {
		d.ports = append(d.ports, s.Port)
	}
	d.sink, err = lab.NewSink(context.WithoutCancel(ctx), d.pair.Far, d.ports...)
	return err
}

// apply is vifshape apply, inside the near namespace.
func (d *demo) apply(ctx context.Context, guests string, show bool) error {
	e := *d.env
	e.stdout = d.out
	return d.pair.Near.Do(func() error {
		s, err := record.Open(d.runDir)
		if err != nil {
			return err
		}
		file := filepath.Join(s.Dir, "demo.toml")
		err = errors.Join(record.MakeDir(s.Dir), os.WriteFile(file, fmt.Appendf(nil, demoPolicy, guests), 0o644))
		if err != nil {
			return err
		}
		return e.apply(ctx, file, applyOptions{verbose: show})
	})
}

// send starts the senders, each a process of its own: inside its branch by
// vifshape run, the last one as it is.
func (d *demo) send(ctx context.Context) (stop func() error, err error) {
	var running []*exec.Cmd
	var pipes []io.Closer
	stop = func() error {
		for _, p := range pipes {
			p.Close() // a sender ends when its input does
		}
		var errs []error
		for _, c := range running {
			kill := time.AfterFunc(5*time.Second, func() { c.Process.Kill() })
			if err := c.Wait(); err != nil && ctx.Err() == nil {
				errs = append(errs, fmt.Errorf("sender %s: %w", c.Args[len(c.Args)-1], err))
			}
			kill.Stop()
		}
		return errors.Join(errs...)
	}
	for _, s := range demoSenders {
		argv := []string{"vifshape", "demo", "send", s.Protocol, netip.AddrPortFrom(d.pair.Far4, s.Port).String(), fmt.Sprint(s.Flows), fmt.Sprint(uint64(s.Rate)), string(s.Path)}
		if s.Path.Base() != hierarchy.RestName {
			argv = append([]string{"vifshape", "run", "--level", "best", string(s.Path), "--", selfPath}, argv[1:]...)
		}
		c := &exec.Cmd{Path: selfPath, Args: argv, Stderr: d.stderr}
		in, err := c.StdinPipe()
		if err == nil {
			err = d.pair.Near.Start(c)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start a sender for %s: %w", s.Path, err), stop())
		}
		running, pipes = append(running, c), append(pipes, in)
	}
	return stop, nil
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
			to, err := netip.ParseAddrPort(a[1])
			if err != nil {
				return err
			}
			t := lab.Traffic{Protocol: a[0], To: to, Control: cubic, Lag: 100 * time.Millisecond}
			var rate uint64
			if _, err := fmt.Sscan(a[2]+" "+a[3], &t.Flows, &rate); err != nil {
				return err
			}
			t.Rate = hierarchy.Bandwidth(rate)
			ctx, cancel := context.WithTimeout(c.Context(), 10*time.Minute)
			defer cancel()
			go func() {
				// Ends with the process that started this one, however that ends.
				_, _ = io.Copy(io.Discard, os.Stdin)
				cancel()
			}()
			if _, err = lab.Send(ctx, t); ctx.Err() != nil {
				return nil // it was to end, perhaps before it was connected
			}
			return err
		}),
	}
}

// cubic keeps a TCP sender's queue full, which is what the ideal allocation
// supposes; BBR does not. Where the kernel has no cubic the default will do.
func cubic(fd int) error {
	_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	return nil
}

// tree is the policy's tree as it is in force, with what the senders want.
func (d *demo) tree(guests string) (*hierarchy.Tree, map[hierarchy.Path]hierarchy.Bandwidth, error) {
	p, err := policy.Parse("demo.toml", strings.NewReader(fmt.Sprintf(demoPolicy, guests)), qdisc.Kinds())
	if err != nil {
		return nil, nil, err
	}
	demand := map[hierarchy.Path]hierarchy.Bandwidth{}
	for _, s := range demoSenders {
		if demand[s.Path] = s.Rate; s.Rate == 0 {
			demand[s.Path] = hierarchy.Unlimited
		}
	}
	return p.Trees[0], demand, nil
}

// phase prints what arrives, second by second, and returns what every branch got
// from demoSettle on.
func (d *demo) phase(ctx context.Context, guests string, start time.Time, length time.Duration) (*demoPhase, error) {
	tree, demand, err := d.tree(guests)
	if err != nil {
		return nil, err
	}
	ideal := tree.Ideal(demand)
	var phase demoPhase
	rows := [4]string{"", "guaranteed", "ceiling", "ideal"}
	for _, s := range demoSenders {
		b := tree.Find(s.Path)
		phase.Results = append(phase.Results, demoResult{Path: s.Path, Rate: b.Rate, Ceil: b.Ceil, Ideal: ideal[s.Path]})
		_, name, _ := strings.Cut(string(s.Path), "/")
		rows[0] += column(name)
		rows[1] += column(mbit(b.Rate))
		rows[2] += column(mbit(b.Ceil))
		rows[3] += column(mbit(ideal[s.Path]))
	}
	fmt.Fprintf(d.out, "%10s%s\n", "", rows[0])
	for i, head := range []string{"guaranteed", "ceiling", "ideal"} {
		fmt.Fprintf(d.out, "%-10s%s\n", head, strings.TrimPrefix(rows[i+1], head))
	}
	begin := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	settled := time.After(demoSettle)
	end := time.After(length)
	last, from := d.counts(), []lab.Count(nil)
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-settled:
			from = d.counts()
		case <-tick.C:
			now := d.counts()
			line := fmt.Sprintf("%9.0fs", time.Since(start).Seconds())
			for i := range now {
				line += column(mbit(now[i].WireRate(last[i])))
			}
			fmt.Fprintln(d.out, line)
			last = now
		case <-end:
			if time.Since(begin) < demoSettle {
				return nil, errors.New("the machine is too busy to measure anything")
			}
			now := d.counts()
			for i := range phase.Results {
				phase.Results[i].judge(now[i].WireRate(from[i]))
			}
			return &phase, nil
		}
	}
}

func (r *demoResult) judge(measured hierarchy.Bandwidth) {
	r.Measured = measured
	r.Error = (float64(measured)/float64(r.Ideal) - 1) * 100
	r.Holds = r.Error >= -demoWithin && r.Error <= demoWithin
}

func (d *demo) counts() []lab.Count {
	var c []lab.Count
	for _, p := range d.ports {
		c = append(c, d.sink.Count(p))
	}
	return c
}

func column(s string) string { return fmt.Sprintf("%14s", s) }

func mbit(b hierarchy.Bandwidth) string {
	return fmt.Sprintf("%.1f", float64(b)/float64(hierarchy.Mbit))
}

// verdict prints what every branch got beside what it should have got.
func (d *demo) verdict(phases []*demoPhase, o demoOptions) error {
	holds := true
	for _, p := range phases {
		for _, r := range p.Results {
			holds = holds && r.Holds
		}
	}
	if o.json {
		err := d.json(demoJSON{holds, demoWithin, phases})
		if err != nil {
			return err
		}
	}
	t := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nBRANCH\tIDEAL\tMEASURED\tERROR\tVERDICT")
	for i, p := range phases {
		if i > 0 {
			fmt.Fprintf(t, "after the change\t\t\t\t\n")
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
		d.notef("a branch is more than %d%% away from the ideal allocation", demoWithin)
		return codeError(exitError)
	}
	fmt.Fprintf(d.out, "\nEvery branch is within %d%% of the ideal allocation.\n", demoWithin)
	return nil
}

// close removes everything, or leaves it standing and says where.
func (d *demo) close(keep bool) error {
	var errs []error
	if d.sink != nil {
		errs = append(errs, d.sink.Close())
	}
	if d.pair != nil && keep {
		errs = append(errs, d.pair.Near.Keep(demoName), d.pair.Far.Keep(demoName+"-far"))
		fmt.Fprintf(d.out, `
The network stands until "vifshape demo --remove". Look around with
  nsenter --net=/run/netns/%[1]s vifshape show
  nsenter --net=/run/netns/%[1]s vifshape run eth0/guests/bob -- ping %[2]s
`, demoName, d.pair.Far4)
		return errors.Join(append(errs, d.pair.Near.Close(), d.pair.Far.Close())...)
	}
	if d.pair != nil {
		if d.pair.Near != nil {
			errs = append(errs, d.vacate(d.pair.Near))
		}
		errs = append(errs, d.pair.Close())
	}
	return errors.Join(errs...)
}
