package trial

import (
	"bufio"
	"context"
	"encoding/json"
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
rate    = "100mbit"
ingress = "200mbit"     # what it receives

[interface.eth0.office]
rate    = "50mbit"
ingress = "100mbit"

[interface.eth0.office.calls]
rate    = "10mbit"
ingress = "20mbit"
prio    = 0             # in front of the others when there is bandwidth to spare

[interface.eth0.office.work]
rate    = "40mbit"
ingress = "80mbit"

[interface.eth0.guests]
rate    = "%s"
ceil    = "70mbit"
ingress = { rate = "60mbit", ceil = "140mbit" }

[interface.eth0.guests.alice]

[interface.eth0.guests.bob]

[interface.eth0.rest]   # what nothing is bound to never gets more
rate    = "10mbit"
ceil    = "10mbit"
ingress = { rate = "20mbit", ceil = "20mbit" }
`

// The rate of eth0/guests before and after the change. After it guarantees take
// the whole link, and nothing is left to borrow.
const demoBefore, demoAfter = "30mbit", "40mbit"

// DemoSenders is who sends what into which leaf, and is then sent twice as much of the
// same. The one for the rest is started without run: nothing binds it. Calls takes all that it is guaranteed, so that the
// link alone lends: what two lend at once HTB shares less exactly (vifshape help figures).
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

// DemoLeast is the least time to send and to receive: three phases that settle, and as
// much again to measure, which takes several rounds of the quanta over all that borrow.
const DemoLeast = 6 * demoSettle

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

// DemoPhase is a stretch of time under one policy, and in one direction.
type DemoPhase struct {
	Receives bool         `json:"receives"`
	Change   string       `json:"change,omitempty"`
	Results  []DemoResult `json:"branches"`
}

// DemoOptions are how long a demonstration takes and who is told of it while it goes on.
type DemoOptions struct {
	RunDir string
	Self   string        // this program
	Stderr io.Writer     // of the senders
	Time   time.Duration // to send and to receive, at least [DemoLeast]
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
	o    DemoOptions
	pair *lab.Pair
	sink *lab.Sink // at the far end
}

// Demo sends into a tree in network namespaces of its own, changes one rate meanwhile, sends
// to its branches, and says what every branch got beside what it should. With keep all of it
// stays standing, under the name [DemoName] and with "-far" behind it. It takes root.
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
	start := time.Now()
	if phases, err = d.sending(ctx, start); err != nil {
		return nil, far, err
	}
	third, err := d.receiving(ctx, start)
	if err != nil {
		return nil, far, err
	}
	return append(phases, third), far, nil
}

// sending has the branches send, and changes one of them meanwhile.
func (d *demo) sending(ctx context.Context, start time.Time) (phases []*DemoPhase, err error) {
	programs := &demoPrograms{}
	defer func() { err = errors.Join(err, programs.stop(ctx)) }()
	for _, s := range DemoSenders {
		to := netip.AddrPortFrom(d.pair.Far4, s.Port).String()
		if _, err := d.start(programs, s, "send", s.Protocol, to, fmt.Sprint(s.Flows), fmt.Sprint(uint64(s.Rate)), string(s.Path)); err != nil {
			return nil, err
		}
	}
	counts := func() (all []lab.Count, err error) {
		for _, s := range DemoSenders {
			all = append(all, d.sink.Count(s.Port))
		}
		return all, nil
	}
	first := &DemoPhase{}
	if err := d.phase(ctx, first, demoBefore, start, counts); err != nil {
		return nil, err
	}
	d.o.Changing(demoBefore, demoAfter)
	if err := d.apply(ctx, demoAfter, d.o.Changed); err != nil {
		return nil, err
	}
	second := &DemoPhase{Change: fmt.Sprintf("eth0/guests rate %s -> %s", demoBefore, demoAfter)}
	if err := d.phase(ctx, second, demoAfter, start, counts); err != nil {
		return nil, err
	}
	return []*DemoPhase{first, second}, nil
}

// receiving has the branches receive what the far end sends them.
func (d *demo) receiving(ctx context.Context, start time.Time) (_ *DemoPhase, err error) {
	programs := &demoPrograms{}
	defer func() { err = errors.Join(err, programs.stop(ctx)) }()
	var inside []*demoReceiver
	for _, s := range DemoSenders {
		r, err := d.start(programs, s, "receive", fmt.Sprint(s.Port), string(s.Path))
		if err != nil {
			return nil, err
		}
		if _, err := r.count(); err != nil { // it listens
			return nil, fmt.Errorf("receiver %s: %w", s.Path, err)
		}
		source, err := lab.Start(context.WithoutCancel(ctx), lab.Traffic{
			NetNS: d.pair.Far, Protocol: s.Protocol, To: netip.AddrPortFrom(d.pair.Near4, s.Port),
			Flows: s.Flows, Rate: 2 * s.Rate, Control: cubic, Lag: demoLag,
		})
		if err != nil {
			return nil, fmt.Errorf("send to %s: %w", s.Path, err)
		}
		inside, programs.sources = append(inside, r), append(programs.sources, source)
	}
	p := &DemoPhase{Receives: true}
	return p, d.phase(ctx, p, demoAfter, start, func() (all []lab.Count, err error) {
		for i, r := range inside {
			n, err := r.count()
			if err != nil {
				return nil, fmt.Errorf("receiver %s: %w", DemoSenders[i].Path, err)
			}
			all = append(all, n)
		}
		return all, nil
	})
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
	var ports []uint16
	for _, s := range DemoSenders {
		ports = append(ports, s.Port)
	}
	d.sink, err = lab.NewSink(context.WithoutCancel(ctx), d.pair.Far, ports...)
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

// demoPrograms are what runs in the branches, each a process of its own, and what is sent
// to them.
type demoPrograms struct {
	running []*exec.Cmd
	pipes   []io.Closer
	sources []*lab.Source
}

// demoReceiver is a program that receives, and counts when it is asked.
type demoReceiver struct {
	ask    io.Writer
	answer *bufio.Reader
}

// start starts a program of the demo: inside its branch by vifshape run, that of the rest as
// it is.
func (d *demo) start(p *demoPrograms, s demoSender, what ...string) (*demoReceiver, error) {
	argv := append([]string{"vifshape", "demo"}, what...)
	if s.Path.Base() != hierarchy.RestName {
		argv = append([]string{"vifshape", "run", "--level", "best", string(s.Path), "--", d.o.Self}, argv[1:]...)
	}
	c := &exec.Cmd{Path: d.o.Self, Args: argv, Stderr: d.o.Stderr}
	in, err := c.StdinPipe()
	var out io.Reader
	if err == nil {
		out, err = c.StdoutPipe()
	}
	if err == nil {
		err = d.pair.Near.Start(c)
	}
	if err != nil {
		return nil, fmt.Errorf("start a program for %s: %w", s.Path, err)
	}
	p.running, p.pipes = append(p.running, c), append(p.pipes, in)
	return &demoReceiver{in, bufio.NewReader(out)}, nil
}

// stop ends all of it.
func (p *demoPrograms) stop(ctx context.Context) error {
	var errs []error
	for _, s := range p.sources {
		errs = append(errs, s.Stop())
	}
	for _, in := range p.pipes {
		in.Close() // a program ends when its input does
	}
	for _, c := range p.running {
		kill := time.AfterFunc(5*time.Second, func() { c.Process.Kill() })
		if err := c.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("program for %s: %w", c.Args[len(c.Args)-1], err))
		}
		kill.Stop()
	}
	if ctx.Err() != nil {
		return nil // which ended all of them
	}
	return errors.Join(errs...)
}

// count is what has arrived.
func (r *demoReceiver) count() (n lab.Count, err error) {
	if _, err = fmt.Fprintln(r.ask); err == nil {
		var line []byte
		if line, err = r.answer.ReadBytes('\n'); err == nil {
			err = json.Unmarshal(line, &n)
		}
	}
	return n, err
}

// promised is what every branch is to get under a policy.
func promised(guests string, receives bool) ([]DemoResult, error) {
	p, err := policy.Parse("demo.toml", strings.NewReader(fmt.Sprintf(demoPolicy, guests)), qdisc.Kinds())
	if err != nil {
		return nil, err
	}
	tree, times := p.Trees[0], hierarchy.Bandwidth(1)
	if receives {
		tree, times = tree.Ingress, 2
	}
	demand := map[hierarchy.Path]hierarchy.Bandwidth{}
	for _, s := range DemoSenders {
		if demand[s.Path] = s.Rate * times; s.Rate == 0 {
			demand[s.Path] = hierarchy.Unlimited
		}
	}
	ideal := tree.Ideal(demand)
	var all []DemoResult
	for _, s := range DemoSenders {
		b := tree.Find(s.Path)
		all = append(all, DemoResult{Path: s.Path, Rate: b.Rate, Ceil: b.Ceil, Ideal: ideal[s.Path]})
	}
	return all, nil
}

// phase tells what arrives, second by second, and puts into the phase what every branch got
// from demoSettle on.
func (d *demo) phase(ctx context.Context, phase *DemoPhase, guests string, start time.Time, counts func() ([]lab.Count, error)) (err error) {
	if phase.Results, err = promised(guests, phase.Receives); err != nil {
		return err
	}
	d.o.Begin(phase)
	last, err := counts()
	if err != nil {
		return err
	}
	var from []lab.Count
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	settled := time.After(demoSettle)
	end := time.After(d.o.Time / 3)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-settled:
			if from, err = counts(); err != nil {
				return err
			}
		case <-tick.C:
			now, err := counts()
			if err != nil {
				return err
			}
			rates := make([]hierarchy.Bandwidth, len(now))
			for i := range now {
				rates[i] = now[i].WireRate(last[i])
			}
			d.o.Tick(time.Since(start), rates)
			last = now
		case <-end:
			if from == nil {
				return errors.New("the machine is too busy to measure anything")
			}
			now, err := counts()
			if err != nil {
				return err
			}
			for i := range phase.Results {
				phase.Results[i].judge(now[i].WireRate(from[i]))
			}
			return nil
		}
	}
}

func (r *DemoResult) judge(measured hierarchy.Bandwidth) {
	r.Measured = measured
	r.Error = (float64(measured)/float64(r.Ideal) - 1) * 100
	r.Holds = r.Error >= -DemoWithin && r.Error <= DemoWithin
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
	t := lab.Traffic{Protocol: a[0], To: to, Control: cubic, Lag: demoLag}
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

// demoLag is how far behind a sender of a set rate may be and still catch up.
const demoLag = 100 * time.Millisecond

// ReceiveUntil is what the demo starts inside branches, to receive on a port: it writes what
// has arrived with each line that it reads, until the input ends.
func ReceiveUntil(ctx context.Context, port uint16, in io.Reader, out io.Writer) error {
	sink, err := lab.NewSink(ctx, nil, port)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() && err == nil {
		err = json.NewEncoder(out).Encode(sink.Count(port))
	}
	return errors.Join(err, lines.Err(), sink.Close())
}

// cubic keeps a TCP sender's queue full, which is what the ideal allocation
// supposes; BBR does not. Where the kernel has no cubic the default will do.
func cubic(fd int) error {
	_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	return nil
}
