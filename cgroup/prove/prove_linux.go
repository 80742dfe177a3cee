package prove

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/iface"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// Proof is what came of the packets that were sent through one way into a class.
type Proof struct {
	Bound hierarchy.Bound // no target: nothing that is bound, the rest
	Sent  int             // packets
	// Landed is how many of them left the interface, by the class that they had.
	Landed map[hierarchy.ClassID]int
	// Seen is what they were when they left, where that could be looked at: the number that
	// they carry does not matter.
	Seen []bpf.Seen
	// AtLeast says that others' packets were among them, and Landed is how many are
	// certain: classes were counted, not these packets alone.
	AtLeast bool
	Err     error // why nothing was sent, or not all

	// Received are packets that were made, as they would be received, and the class that each
	// kind of them would get; 0: none, for it does not come to the tree.
	Received []bpf.Seen
	NoAnswer error // why there are none, or not all kinds
}

// Config is what [Run] works with.
type Config struct {
	Tree    *cgroupfs.Tree // where the bound cgroups are
	Index   uint32         // of the interface
	NetNSFD int            // a descriptor of its network namespace, 0 for the caller's
	// Unseen says that packets do not show their class where they leave.
	Unseen bool
	// Nobody is a user who is not bound.
	Nobody func() (uid uint32, err error)

	// Receive asks for the class that a packet gets which the interface receives, without one
	// being there. Nil: what it receives is not told apart.
	Receive func(*match.Packet) (hierarchy.ClassID, error)
	// Looks says that what answers to nothing is looked for who would receive it.
	Looks bool

	Packets int // through each way
	// Sender is a process that runs [Sender], not yet started.
	Sender func() *exec.Cmd
	// Counters are the packets that each leaf class has sent so far. They are asked
	// where the packets themselves cannot be looked at.
	Counters func() (map[hierarchy.ClassID]uint64, error)
}

// Run sends packets through each of the ways in and says where they landed: from
// within bound cgroups, as bound users, from the other ends of bound interfaces, and
// where there is no target from nothing that is bound. They are datagrams of 16 bytes
// to groups that nobody is in, and go no further than the next link; what comes in by
// an interface is to be forwarded to an address of nobody's and goes one step on.
//
// Within a cgroup that is a cgroup of its own below it, for a moment, so that no
// process of somebody else's has a stranger beside it; those that a run left behind
// that was killed are removed by the next. The process that sends ends with this one.
//
// Where what is received gets classes too, each way in asks somebody something by a socket of its own,
// at an address of nobody's, else of a neighbour, with a time to live that ends there. What would
// answer that is made as it would come and given to the program at the hook, and where that looks
// for sockets, what answers to nothing. Neither is received by anybody.
//
// Counted is what a packet socket on the interface sees, behind all queues. Where the
// kernel loads no program for it, or packets do not have their class, the counters of
// classes are read until nobody else sends. Writers of the interface must be excluded.
func Run(ctx context.Context, in []hierarchy.Bound, cfg Config) (_ []Proof, err error) {
	p := &proving{Config: cfg, run: random()}
	if !cfg.Unseen {
		tap, err := bpf.NewTap(p.run, len(in), cfg.NetNSFD, cfg.Index)
		if err != nil && cfg.Counters == nil {
			return nil, err
		}
		p.tap = tap
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.sweep(ctx); err != nil {
		return nil, err
	}
	if cfg.Receive != nil && p.tap != nil {
		if p.of, p.nobody = p.destination(); p.nobody != nil {
			p.nobody = fmt.Errorf("nobody can be asked: %w", p.nobody)
		}
	}
	all := make([]Proof, len(in))
	for i, bound := range in {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		all[i] = Proof{Bound: bound, Landed: map[hierarchy.ClassID]int{}}
		if p.tap != nil {
			var at uint16
			if all[i].Sent, at, all[i].Err = p.send(ctx, bound, uint32(i)); all[i].Sent > 0 && cfg.Receive != nil {
				if err := p.receive(ctx, &all[i], uint32(i), at); err != nil {
					return nil, err
				}
			}
		} else if err := p.counted(ctx, &all[i], uint32(i)); err != nil {
			return nil, err
		}
	}
	if p.tap != nil {
		err = p.count(ctx, all)
	}
	return all, err
}

// patience is for a sender that does not answer, and for packets that wait in queues.
const patience = 5 * time.Second

// proving is one call of Run.
type proving struct {
	Config
	run    uint64   // that the packets carry
	tap    *bpf.Tap // nil: classes are counted
	sender *sender
	made   []string   // cgroups
	of     netip.Addr // who is asked something
	nobody error      // why nobody is
}

func random() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.NativeEndian.Uint64(b[:])
}

// cgroupName starts the names of cgroups that are there for a moment. No interface's or
// branch's home is called so, see [cgroupfs.Escape].
const cgroupName = "_prove-"

// sweep removes what a run left behind that was killed.
func (p *proving) sweep(ctx context.Context) error {
	return p.Tree.Walk("/", func(at string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if strings.HasPrefix(path.Base(at), cgroupName) {
			_ = unix.Rmdir(p.Tree.Dir(at)) // whatever else bears the name is not empty, or somebody's again
			return fs.SkipDir
		}
		return nil
	})
}

func (p *proving) close() error {
	var errs []error
	if p.sender != nil {
		errs = append(errs, p.sender.end())
	}
	for _, at := range slices.Backward(p.made) {
		if err := removeSoon(p.Tree.Dir(at)); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", at, err))
		}
	}
	unix.Rmdir(p.Tree.Dir(home.Root)) // where it is empty
	if p.tap != nil {
		errs = append(errs, p.tap.Close())
	}
	return errors.Join(errs...)
}

// removeSoon removes a cgroup that a process is leaving.
func removeSoon(dir string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		switch err := unix.Rmdir(dir); {
		case err == nil, err == unix.ENOENT, err == unix.ENODEV:
			return nil
		case err != unix.EBUSY || time.Now().After(deadline):
			return err
		}
	}
}

// asking is the number of a question, beside that of the packets of a way in.
const asking = 1 << 31

// send sends through one way in. Port is of the socket that asks.
func (p *proving) send(ctx context.Context, in hierarchy.Bound, way uint32) (sent int, port uint16, err error) {
	o := order{Index: p.Index, Run: p.run, Way: way, N: p.Packets, Ask: p.Receive != nil && p.tap != nil, Of: p.of, Asking: way | asking}
	below := home.Root
	switch in.Target.Kind {
	case bind.TargetLink:
		sent, err = p.sendFrom(in.Target.Name, o)
		return sent, 0, err
	case bind.TargetCgroup:
		below = in.Target.Name
	case bind.TargetUser:
		o.User = uint32(in.Target.ID)
	case bind.TargetNone:
		if o.User, err = p.Nobody(); err != nil {
			return 0, 0, err
		}
	default:
		return 0, 0, errors.New("it is gone")
	}
	at := path.Join(below, cgroupName+strconv.Itoa(os.Getpid()))
	if p.sender == nil {
		if p.sender, err = p.start(); err != nil {
			return 0, 0, err
		}
	}
	if err := p.join(below, at, in.Target.Kind == bind.TargetCgroup); err != nil {
		return 0, 0, err
	}
	a, err, lost := p.sender.carryOut(ctx, o)
	if lost {
		p.sender = nil
	}
	return a.Sent, a.Port, err
}

// join puts the sender into a cgroup of its own below another one, which must be there already
// where it is bound. One that nobody is in may be removed by a run in another network
// namespace, and is made again.
func (p *proving) join(below, at string, bound bool) error {
	for try := 1; ; try++ {
		if _, _, err := p.Tree.ID(below); bound && err != nil {
			return errors.New("it is gone")
		}
		if !slices.Contains(p.made, at) {
			p.made = append(p.made, at)
		}
		if err := p.Tree.Make(at); err != nil {
			return fmt.Errorf("make a cgroup in it: %w", caps.Explain(caps.Errno(err), unix.CAP_DAC_OVERRIDE))
		}
		const tries = 10
		err := p.Tree.Join(at, p.sender.cmd.Process.Pid)
		if err == nil {
			return nil
		}
		if e := caps.Errno(err); e != unix.ENOENT && e != unix.ENODEV || try == tries {
			return fmt.Errorf("put a process into it: %w", e)
		}
	}
}

// sender is a process that sends.
type sender struct {
	cmd     *exec.Cmd
	to      io.WriteCloser
	answers chan answer
}

func (p *proving) start() (*sender, error) {
	s := &sender{cmd: p.Sender(), answers: make(chan answer)}
	to, err := s.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	from, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	start := s.cmd.Start
	if fd := p.NetNSFD; fd != 0 {
		start = func() error { return cgroupfs.InNetNS(fd, s.cmd.Start) }
	}
	if err := start(); err != nil {
		return nil, fmt.Errorf("start a process that sends: %w", err)
	}
	s.to = to
	go func() {
		defer close(s.answers)
		for in := json.NewDecoder(from); ; {
			var a answer
			if in.Decode(&a) != nil {
				return
			}
			s.answers <- a
		}
	}()
	return s, nil
}

// carryOut has an order carried out; lost says that the sender is no more.
func (s *sender) carryOut(ctx context.Context, o order) (a answer, err error, lost bool) {
	b, err := json.Marshal(o)
	if err == nil {
		_, err = s.to.Write(append(b, '\n'))
	}
	if err != nil {
		return a, errors.Join(err, s.end()), true
	}
	select {
	case a, ok := <-s.answers:
		switch {
		case !ok:
			return a, errors.Join(errors.New("the process that sends ended in it"), s.end()), true
		case a.Err != "":
			err = errors.New(a.Err)
		}
		return a, err, false
	case <-time.After(patience):
		err = errors.New("a process in it gets no turn: is it frozen?")
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.cmd.Process.Kill()
	return a, errors.Join(err, s.end()), true
}

// end waits for the sender to end, which it does when there are no more orders.
func (s *sender) end() error {
	s.to.Close()
	for range s.answers {
	}
	if err := s.cmd.Wait(); err != nil && s.cmd.ProcessState == nil {
		return err
	}
	return nil
}

// sendFrom sends from the other end of an interface.
func (p *proving) sendFrom(name string, o order) (sent int, err error) {
	l, err := iface.Get(p.NetNSFD, 0, name)
	if err != nil {
		return 0, err
	}
	if l.PeerNS < 0 || l.Kind != "veth" && l.Kind != "netkit" {
		return 0, errors.New("its packets come from outside of this machine, or from this network namespace: nothing can be sent there")
	}
	to, err := p.destination()
	if err != nil {
		return 0, err
	}
	ns, err := p.findNetNS(l.PeerNS)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	o.Index = l.Peer
	err = cgroupfs.InNetNS(int(ns.Fd()), func() error {
		sent, err = o.forwarded(to)
		return err
	})
	if err != nil {
		err = fmt.Errorf("send from its other end: %w", err)
	}
	return sent, err
}

// findNetNS opens the network namespace that the interface's own knows by a number: by
// a process in it, or where tools keep them by name.
func (p *proving) findNetNS(number int32) (*os.File, error) {
	files, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, dir := range []string{"/run/netns/*", "/run/docker/netns/*"} {
		named, _ := filepath.Glob(dir)
		files = append(files, named...)
	}
	seen := map[uint64]bool{}
	for _, file := range files {
		var st unix.Stat_t
		if unix.Stat(file, &st) != nil || seen[st.Ino] {
			continue
		}
		seen[st.Ino] = true
		f, err := os.Open(file)
		if err != nil {
			continue
		}
		var now unix.Stat_t
		if n, err := iface.Number(p.NetNSFD, f); err == nil && n == number && unix.Fstat(int(f.Fd()), &now) == nil && now.Ino == st.Ino {
			return f, nil
		}
		f.Close()
	}
	return nil, errors.New("no process is in the network namespace of its other end, and it has no name: nobody can enter it")
}

// destination is what this machine sends on by the interface: nobody's address where
// the route to that leads there, else a neighbour.
func (p *proving) destination() (netip.Addr, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.RTA_DST, noOne.AsSlice())
	attrs, err := ae.Encode()
	if err != nil {
		return netip.Addr{}, err
	}
	msg := make([]byte, unix.SizeofRtMsg)
	msg[0], msg[1] = unix.AF_INET, 32
	answers, err := iface.Ask(p.NetNSFD, unix.RTM_GETROUTE, 0, append(msg, attrs...))
	if err == nil && len(answers) == 1 && attribute(answers[0].Data, unix.SizeofRtMsg, unix.RTA_OIF, p.Index) {
		return noOne, nil
	}
	msg = make([]byte, unix.SizeofNdMsg)
	msg[0] = unix.AF_INET
	answers, err = iface.Ask(p.NetNSFD, unix.RTM_GETNEIGH, netlink.Dump, msg)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list neighbours: %w", err)
	}
	const known = unix.NUD_PERMANENT | unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE
	for _, m := range answers {
		if len(m.Data) < unix.SizeofNdMsg || binary.NativeEndian.Uint32(m.Data[4:]) != p.Index || binary.NativeEndian.Uint16(m.Data[8:])&known == 0 {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofNdMsg:])
		if err != nil {
			return netip.Addr{}, err
		}
		for ad.Next() {
			if a, ok := netip.AddrFromSlice(ad.Bytes()); ad.Type() == unix.NDA_DST && ok {
				return a, nil
			}
		}
	}
	return netip.Addr{}, errors.New("no address is known to which the interface leads: there is no route to the world, and no neighbour")
}

// attribute says whether a message has the value for an attribute.
func attribute(b []byte, header int, of uint16, is uint32) bool {
	if len(b) < header {
		return false
	}
	ad, err := netlink.NewAttributeDecoder(b[header:])
	for err == nil && ad.Next() {
		if ad.Type() == of {
			return ad.Uint32() == is
		}
	}
	return false
}

// counted sends through one way in and goes by the counters of classes: by a moment in
// which nobody else sends, else by that in which the least was sent besides.
func (p *proving) counted(ctx context.Context, x *Proof, way uint32) error {
	const tries = 20
	best := -1
	for range tries {
		before, err := p.Counters()
		if err != nil {
			return err
		}
		sent, _, err := p.send(ctx, x.Bound, way)
		if x.Err = err; sent == 0 {
			return ctx.Err()
		}
		var gained map[hierarchy.ClassID]int
		total := 0
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			after, err := p.Counters()
			if err != nil {
				return err
			}
			gained, total = map[hierarchy.ClassID]int{}, 0
			for c, n := range after {
				if n > before[c] {
					gained[c] = int(n - before[c])
					total += gained[c]
				}
			}
			if total >= sent || time.Now().After(deadline) || ctx.Err() != nil {
				break
			}
		}
		if total <= sent { // nobody else
			x.Sent, x.Landed, x.AtLeast = sent, gained, false
			return ctx.Err()
		}
		// All packets of one socket have one class. So many at least are in it.
		if others := total - gained[x.Bound.Class]; best < 0 || others < best {
			best = others
			x.Sent, x.AtLeast = sent, true
			x.Landed = map[hierarchy.ClassID]int{x.Bound.Class: max(0, sent-others)}
		}
	}
	if x.Landed[x.Bound.Class] == 0 {
		x.Landed = map[hierarchy.ClassID]int{}
		x.Err = errors.New("others send too much to tell these packets apart by the counters of classes")
	}
	return ctx.Err()
}

// receive asks for what would be received through a way in: what answers to what was sent by
// it, and what answers to nothing.
func (p *proving) receive(ctx context.Context, x *Proof, way uint32, at uint16) error {
	number := way // what is forwarded is a question itself
	if x.Bound.Target.Kind != bind.TargetLink {
		number |= asking
	}
	var kinds []match.Packet
	if x.NoAnswer = p.nobody; p.nobody == nil {
		q, err := p.left(ctx, number, time.Now().Add(patience))
		if err != nil {
			return err
		}
		if q == nil {
			x.NoAnswer = fmt.Errorf("a question to %v has not left the interface", p.of)
			others, err := p.left(ctx, way, time.Now())
			if err != nil {
				return err
			}
			if others != nil { // it is not the queue that keeps it, and the next one would not leave either
				p.nobody = x.NoAnswer
			}
		} else {
			kinds = append(kinds, match.Packet{Received: true, From: q.To, To: q.From, FromMAC: q.ToMAC, ToMAC: q.FromMAC, Proto: q.Proto, SPort: q.DPort, DPort: q.SPort})
		}
	}
	if p.Looks && at != 0 { // the socket has any address
		kinds = append(kinds, match.Packet{Received: true, From: noOne, To: ours, Proto: match.UDP, SPort: port, DPort: at})
	}
	for i, k := range kinds {
		landed := map[hierarchy.ClassID]int{}
		for n := i; n < p.Packets; n += len(kinds) {
			class, err := p.Receive(&k)
			if err != nil {
				return err
			}
			landed[class]++
		}
		for class, n := range landed {
			x.Received = append(x.Received, bpf.Seen{Class: class, Packets: n, First: k})
		}
	}
	return nil
}

// left is the packet with a number as it left the interface, nil where it does not until then.
func (p *proving) left(ctx context.Context, number uint32, deadline time.Time) (packet *match.Packet, err error) {
	for ; ; time.Sleep(time.Millisecond) {
		err := p.tap.Seen(func(s bpf.Seen) {
			if s.Number == number {
				packet = &s.First
			}
		})
		if err != nil || packet != nil || time.Now().After(deadline) || ctx.Err() != nil {
			return packet, errors.Join(err, ctx.Err())
		}
	}
}

// count waits until all that was sent has left the interface, or no more does.
func (p *proving) count(ctx context.Context, all []Proof) error {
	for deadline, last := time.Now().Add(patience), 0; ; time.Sleep(time.Millisecond) {
		left, landed := 0, 0
		for i := range all {
			clear(all[i].Landed)
			all[i].Seen = nil
			left += all[i].Sent
		}
		err := p.tap.Seen(func(s bpf.Seen) {
			if s.Number < uint32(len(all)) {
				x := &all[s.Number]
				x.Landed[s.Class] += s.Packets
				x.Seen = append(x.Seen, s)
				landed += s.Packets
			}
		})
		if landed > last {
			last, deadline = landed, time.Now().Add(patience)
		}
		if err != nil || landed >= left || ctx.Err() != nil || time.Now().After(deadline) {
			return errors.Join(err, ctx.Err())
		}
	}
}
