package trial

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
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
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

// DemoSenders is who sends what into which leaf. The one for the rest is started
// without run: nothing binds it. Calls takes all that it is guaranteed, so that the
// link alone lends: what two lend at once HTB shares less exactly (README.md).
var DemoSenders = []demoSender{
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

// DemoWithin is how far from the ideal allocation a branch may be.
const DemoWithin = 5 // percent

// demoSettle is how long after a start or a change measuring begins: TCP takes
// its time to find its rate.
const demoSettle = 2 * time.Second

// DemoLeast is the least time to send: two phases that settle, and as much again
// to measure, which takes several rounds of the quanta over all that borrow.
const DemoLeast = 4 * demoSettle

// DemoName is the network namespace that --keep leaves behind; its far end has
// "-far" behind it.
const DemoName = "vifshape-demo"

// netNSDir is where names of network namespaces are, for ip netns too.
const netNSDir = "/run/netns"

// DemoResult is the verdict on one branch.
type DemoResult struct {
	Path     hierarchy.Path      `json:"path"`
	Rate     hierarchy.Bandwidth `json:"rate"`
	Ceil     hierarchy.Bandwidth `json:"ceil"`
	Ideal    hierarchy.Bandwidth `json:"ideal"`
	Measured hierarchy.Bandwidth `json:"measured"`
	Error    float64             `json:"error_percent"`
	Holds    bool                `json:"holds"`
}

// DemoPhase is a stretch of time under one policy.
type DemoPhase struct {
	Change  string       `json:"change,omitempty"`
	Results []DemoResult `json:"branches"`
}

// DemoOptions are how long a demonstration takes and who is told of it while it goes on.
type DemoOptions struct {
	RunDir string
	Self   string        // this program
	Stderr io.Writer     // of the senders
	Time   time.Duration // to send, at least [DemoLeast]
	Tell   func(shaper.Remark)
	// Begin is told what every branch should get, before a phase; Tick what each gets,
	// every second since the start, in the order of the branches; Changed what is
	// changed between the phases, as it was asked for and as it was done.
	Begin    func(*DemoPhase)
	Tick     func(time.Duration, []hierarchy.Bandwidth)
	Changing func(from, to string)
	Changed  func([]hierarchy.Plan) error
}

// demo is the demonstration under way.
type demo struct {
	o     DemoOptions
	pair  *lab.Pair
	sink  *lab.Sink
	ports []uint16
}

// Demo sends into a tree in network namespaces of its own, changes one rate meanwhile, and
// says what every branch got beside what it should. With keep all of it stays
// standing, under the name [DemoName] and with "-far" behind it. It takes root.
func Demo(ctx context.Context, o DemoOptions, keep bool) (phases []*DemoPhase, far netip.Addr, err error) {
	d := &demo{o: o}
	defer func() { err = errors.Join(err, d.close(keep && err == nil)) }()
	if err := d.open(ctx); err != nil {
		return nil, far, err
	}
	far = d.pair.Far4
	if err := d.apply(ctx, demoBefore, nil); err != nil {
		return nil, far, err
	}
	stop, err := d.send(ctx)
	if err != nil {
		return nil, far, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	start := time.Now()
	first, err := d.phase(ctx, demoBefore, start, o.Time/2)
	if err != nil {
		return nil, far, err
	}
	o.Changing(demoBefore, demoAfter)
	if err := d.apply(ctx, demoAfter, o.Changed); err != nil {
		return nil, far, err
	}
	second, err := d.phase(ctx, demoAfter, start, o.Time-o.Time/2)
	if err != nil {
		return nil, far, err
	}
	second.Change = fmt.Sprintf("eth0/guests rate %s -> %s", demoBefore, demoAfter)
	return []*DemoPhase{first, second}, far, nil
}

// Standing says whether a demonstration was left standing.
func Standing() error {
	for _, name := range []string{DemoName, DemoName + "-far"} {
		if _, err := os.Lstat(filepath.Join(netNSDir, name)); err == nil {
			return fmt.Errorf("a demo stands already, in network namespace %s: `vifshape demo --remove` takes it away", name)
		}
	}
	return nil
}

// RemoveDemo removes what was left standing.
func RemoveDemo(runDir string) error {
	near, err := lab.OpenNetNS(filepath.Join(netNSDir, DemoName))
	if err != nil {
		return fmt.Errorf("no demo stands: %w", err)
	}
	return errors.Join(vacate(runDir, near), near.Close(), lab.Forget(DemoName), lab.Forget(DemoName+"-far"))
}

// open makes the network and the listener at its far end.
func (d *demo) open(ctx context.Context) (err error) {
	if d.pair, err = lab.NewPair(lab.PairConfig{}); err != nil {
		return err
	}
	for _, s := range DemoSenders {
		d.ports = append(d.ports, s.Port)
	}
	d.sink, err = lab.NewSink(context.WithoutCancel(ctx), d.pair.Far, d.ports...)
	return err
}

// apply brings the policy into force inside the near namespace.
func (d *demo) apply(ctx context.Context, guests string, done func([]hierarchy.Plan) error) error {
	return d.pair.Near.Do(func() error {
		s, err := record.Open(d.o.RunDir)
		if err != nil {
			return err
		}
		file := filepath.Join(s.Dir, "demo.toml")
		err = errors.Join(record.MakeDir(s.Dir), os.WriteFile(file, fmt.Appendf(nil, demoPolicy, guests), 0o644))
		if err != nil {
			return err
		}
		return bring(ctx, d.o.RunDir, file, "", d.o.Tell, done)
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
	for _, s := range DemoSenders {
		argv := []string{"vifshape", "demo", "send", s.Protocol, netip.AddrPortFrom(d.pair.Far4, s.Port).String(), fmt.Sprint(s.Flows), fmt.Sprint(uint64(s.Rate)), string(s.Path)}
		if s.Path.Base() != hierarchy.RestName {
			argv = append([]string{"vifshape", "run", "--level", "best", string(s.Path), "--", d.o.Self}, argv[1:]...)
		}
		c := &exec.Cmd{Path: d.o.Self, Args: argv, Stderr: d.o.Stderr}
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

// tree is the policy's tree as it is in force, with what the senders want.
func (d *demo) tree(guests string) (*hierarchy.Tree, map[hierarchy.Path]hierarchy.Bandwidth, error) {
	p, err := policy.Parse("demo.toml", strings.NewReader(fmt.Sprintf(demoPolicy, guests)), qdisc.Kinds())
	if err != nil {
		return nil, nil, err
	}
	demand := map[hierarchy.Path]hierarchy.Bandwidth{}
	for _, s := range DemoSenders {
		if demand[s.Path] = s.Rate; s.Rate == 0 {
			demand[s.Path] = hierarchy.Unlimited
		}
	}
	return p.Trees[0], demand, nil
}

// phase tells what arrives, second by second, and returns what every branch got
// from demoSettle on.
func (d *demo) phase(ctx context.Context, guests string, start time.Time, length time.Duration) (*DemoPhase, error) {
	tree, demand, err := d.tree(guests)
	if err != nil {
		return nil, err
	}
	ideal := tree.Ideal(demand)
	var phase DemoPhase
	for _, s := range DemoSenders {
		b := tree.Find(s.Path)
		phase.Results = append(phase.Results, DemoResult{Path: s.Path, Rate: b.Rate, Ceil: b.Ceil, Ideal: ideal[s.Path]})
	}
	d.o.Begin(&phase)
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
			rates := make([]hierarchy.Bandwidth, len(now))
			for i := range now {
				rates[i] = now[i].WireRate(last[i])
			}
			d.o.Tick(time.Since(start), rates)
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

func (r *DemoResult) judge(measured hierarchy.Bandwidth) {
	r.Measured = measured
	r.Error = (float64(measured)/float64(r.Ideal) - 1) * 100
	r.Holds = r.Error >= -DemoWithin && r.Error <= DemoWithin
}

func (d *demo) counts() []lab.Count {
	var c []lab.Count
	for _, p := range d.ports {
		c = append(c, d.sink.Count(p))
	}
	return c
}

// close removes everything, or leaves it standing.
func (d *demo) close(keep bool) error {
	var errs []error
	if d.sink != nil {
		errs = append(errs, d.sink.Close())
	}
	if d.pair != nil && keep {
		errs = append(errs, d.pair.Near.Keep(DemoName), d.pair.Far.Keep(DemoName+"-far"))
		return errors.Join(append(errs, d.pair.Near.Close(), d.pair.Far.Close())...)
	}
	if d.pair != nil {
		if d.pair.Near != nil {
			errs = append(errs, vacate(d.o.RunDir, d.pair.Near))
		}
		errs = append(errs, d.pair.Close())
	}
	return errors.Join(errs...)
}

// SendUntil is what the demo starts inside branches, with the arguments PROTOCOL, TO, FLOWS,
// RATE and NAME: it sends until the input ends, as it does with the process that started
// this one, however that ends.
func SendUntil(ctx context.Context, a []string, in io.Reader) error {
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
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	if _, err = lab.Send(ctx, t); ctx.Err() != nil {
		return nil // it was to end, perhaps before it was connected
	}
	return err
}

// cubic keeps a TCP sender's queue full, which is what the ideal allocation
// supposes; BBR does not. Where the kernel has no cubic the default will do.
func cubic(fd int) error {
	_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	return nil
}
