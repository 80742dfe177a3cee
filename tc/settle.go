//go:build linux

package tc

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// Settle fills what the policy leaves open in t for this interface: bursts,
// quanta, the leaves' qdiscs and every parameter of them, and what the line adds to
// each packet. It rounds all values
// to what the kernel keeps, so that t.State() equals what [Device.Read] gives
// after an apply, paths aside. Inner branches lose quantum and priority, which
// the kernel ignores.
//
// It asks the kernel which kinds of qdiscs it has, without changing anything.
// Without CAP_NET_ADMIN the kernel does not answer; the kinds are then those that
// the lists of its modules name, and those that stand on any interface. The error
// lists all that the kernel could not keep or does not have, each with its path; it
// is [rtnl.ErrNotSupported] when a kind is missing.
func (d *Device) Settle(t *hierarchy.Tree) error {
	packet := d.packet
	mtu := d.mtu
	if t.MTU != 0 {
		packet, mtu = t.MTU, t.MTU
	}
	kinds := d.kinds()
	hz, err := clock()
	if err != nil {
		return d.Fail("read the kernel's clock", err)
	}
	var errs []error
	refuse := func(b *hierarchy.Branch, err error) {
		errs = append(errs, fmt.Errorf("%s: %w", b.Path, err))
	}
	link, err := t.Line.On(d.header)
	if err != nil {
		refuse(t.Root, err)
	}
	if err := shape(t, mtu, packet); err != nil {
		errs = append(errs, err)
	}
	for b := range t.All() {
		b.Link = link
		if !b.Leaf() {
			b.Quantum, b.Prio = 0, 0
			continue
		}
		err := kinds.settle(&b.Qdisc, site{rate: b.Rate, ceil: b.Ceil, mtu: mtu, packet: packet, hz: hz})
		if e := (*rtnl.OpError)(nil); errors.As(err, &e) {
			return err // could not ask, about this leaf or any other
		}
		if err != nil {
			refuse(b, err)
		}
	}
	return errors.Join(errs...)
}

// clock is the number of ticks per second of the kernel's clock, its CONFIG_HZ. It
// is shown nowhere, but a clock that only ticks has that resolution
// (posix_get_coarse_res, kernel/time/posix-timers.c, v6.12).
func clock() (hz uint64, err error) {
	var t unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &t); err != nil {
		return 0, err
	}
	ns := uint64(t.Nano())
	if ns == 0 {
		return 0, errors.New("it has no resolution")
	}
	return (uint64(time.Second) + ns/2) / ns, nil
}

// Remarks says what a settled tree asks for and the kernel does less exactly on this
// interface, each with what mends it.
//
// A packet that is segmented after its queue counts with the headers of all its parts
// (qdisc_pkt_len_init, net/core/dev.c, v6.12), but what the line adds is added once.
// Where packets of the MTU could so take a hundredth more than their rate, that is
// remarked on.
//
// So is a leaf in which packets may wait for longer than [longWait] at its ceil, where
// the queue is as it comes: for a packet of the largest size, or for a full queue
// that only counts bytes or packets.
func (d *Device) Remarks(t *hierarchy.Tree) []string {
	return slices.DeleteFunc([]string{d.segmented(t), d.waiting(t)}, func(s string) bool { return s == "" })
}

func (d *Device) segmented(t *hierarchy.Tree) string {
	frame := d.mtu - ethernetHeader + d.header
	parts := d.packet / frame
	if parts < 2 {
		return ""
	}
	link := t.Root.Link
	counted, sent := link.Bytes(parts*frame), parts*link.Bytes(frame)
	if sent*100 < counted*101 {
		return ""
	}
	return fmt.Sprintf("%s: packets that are segmented behind the queue get the line's overhead once, not for each part: large transfers may take up to %.1f %% more of the line than their rate; \"ip link set dev %[1]s gso_max_segs 1\" ends that for what this machine sends, \"ethtool -K DEV gro off\" for what it forwards from DEV",
		d.Name, float64(sent-counted)/float64(counted)*100)
}

// longWait is what packets should not have to wait for in a branch.
const longWait = 250 * time.Millisecond

func (d *Device) waiting(t *hierarchy.Tree) string {
	mtu, packet := d.mtu, d.packet
	if t.MTU != 0 {
		mtu, packet = t.MTU, t.MTU
	}
	var worst *hierarchy.Branch
	longest, also := time.Duration(0), -1
	for b := range t.All() {
		if !b.Leaf() {
			continue
		}
		wait := sendTime(max(fullQueue(b, mtu, packet), packet), b.Ceil)
		if wait > longWait {
			also++
		}
		if wait > longest {
			worst, longest = b, wait
		}
	}
	if longest <= longWait {
		return ""
	}
	name := string(worst.Path)
	if also > 0 {
		name += fmt.Sprintf(" (and %d more)", also)
	}
	text := fmt.Sprintf("%s: packets may wait %v there at ceil %v", name, roundWait(longest), worst.Ceil)
	fix, size := []string{}, max(fullQueue(worst, mtu, packet), packet)
	if packet > mtu {
		size = mtu
		if worst.Qdisc.Kind == bfifo.Name && fullQueue(worst, mtu, packet) > 0 {
			size = queueBytes(site{rate: worst.Rate, ceil: worst.Ceil, mtu: mtu, packet: mtu})
		}
		fix = append(fix, fmt.Sprintf("\"ip link set dev %s gso_max_segs 1\" before the next apply makes it %v", d.Name, roundWait(sendTime(size, worst.Ceil))))
	}
	if worst.Qdisc.Kind == bfifo.Name && sendTime(size, worst.Ceil) > longWait {
		limit := max(rtnl.BytesIn(uint64(longWait), worst.Ceil), 2*mtu)
		fix = append(fix, fmt.Sprintf("qdisc = { kind = \"bfifo\", limit = \"%db\" } for it then %v", limit, roundWait(sendTime(limit, worst.Ceil))))
	}
	if len(fix) == 0 {
		return text
	}
	return text + "; " + strings.Join(fix, ", ")
}

// fullQueue is what waits in the leaf's queue when it is full, if that is one which
// counts bytes or packets only and has the limit that it gets when nothing is said.
func fullQueue(b *hierarchy.Branch, mtu, packet hierarchy.Size) hierarchy.Size {
	s := site{rate: b.Rate, ceil: b.Ceil, mtu: mtu, packet: packet}
	limit, _ := b.Qdisc.Get("limit")
	switch {
	case b.Qdisc.Kind == bfifo.Name && limit == uint64(queueBytes(s)):
		return queueBytes(s)
	case b.Qdisc.Kind == sfq.Name && limit == queuePackets(s):
		return hierarchy.Size(limit) * mtu
	}
	return 0
}

// sendTime is how long size takes at rate.
func sendTime(size hierarchy.Size, rate hierarchy.Bandwidth) time.Duration {
	return time.Duration(min(rtnl.Scale(uint64(size), uint64(time.Second), rtnl.BytesPerSecond(rate)), math.MaxInt64))
}

func roundWait(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

// settleClass rounds a class and fills its bursts, cburst with more bytes than its
// ceil asks for.
func settleClass(c *hierarchy.Class, more hierarchy.Size) error {
	c.Rate, c.Ceil = c.Rate.Kernel(), c.Ceil.Kernel()
	if c.Burst == 0 {
		c.Burst = burst(c.Rate, 0)
	}
	if c.CBurst == 0 {
		c.CBurst = burst(c.Ceil, more)
	}
	var err, cerr error
	if c.Burst, err = rtnl.RoundTicks(c.Burst, c.Rate); err != nil {
		return fmt.Errorf("burst %w", err)
	}
	if c.CBurst, cerr = rtnl.RoundTicks(c.CBurst, c.Ceil); cerr != nil {
		return fmt.Errorf("cburst %w", cerr)
	}
	return nil
}

// kernelKinds says which disciplines the kernel has. It asks for each when it
// has to, and once: asking loads modules.
type kernelKinds struct {
	ask   func(*discipline) (bool, error)
	known map[*discipline]bool
}

func (d *Device) kinds() *kernelKinds {
	return &kernelKinds{ask: d.asker(), known: map[*discipline]bool{}}
}

func (k *kernelKinds) has(d *discipline) (bool, error) {
	has, ok := k.known[d]
	if ok {
		return has, nil
	}
	has, err := k.ask(d)
	if err == nil {
		k.known[d] = has
	}
	return has, err
}

// LeafKinds says which of [Kinds] this kernel has and which it lacks. Asking
// loads modules, as using them would; see [Device.Settle] for how it is done
// without CAP_NET_ADMIN.
func (d *Device) LeafKinds() (have, lacking []string, err error) {
	hasKind := d.asker()
	for _, k := range disciplines {
		has, err := hasKind(k)
		switch {
		case err != nil:
			return nil, nil, err
		case has:
			have = append(have, k.Name)
		default:
			lacking = append(lacking, k.Name)
		}
	}
	return have, lacking, nil
}

// Lacks says which of the given kinds of qdiscs this kernel has not: also those
// that are no leaves, such as "htb" and "clsact". It asks as [Device.LeafKinds] does.
func (d *Device) Lacks(kinds ...string) (lacking []string, err error) {
	hasKind := d.asker()
	for _, name := range kinds {
		k := &discipline{Kind: hierarchy.Kind{Name: name}, module: "sch_" + name}
		if name == clsactKind {
			k.module = "sch_ingress" // which has both
		}
		has, err := hasKind(k)
		if err != nil {
			return nil, err
		}
		if !has {
			lacking = append(lacking, name)
		}
	}
	return lacking, nil
}

const clsactKind = "clsact"

// HasBPF says whether this kernel has the classifier that [Device.AttachEgress]
// uses, as far as the lists of its modules and functions tell: it can be asked for
// only where it is used. A no proves nothing where known is false.
func HasBPF() (has, known bool) {
	if has, known = rtnl.HasModule("cls_bpf"); has {
		return true, true
	}
	// Part of the kernel itself; what is in neither list cannot be loaded.
	b, err := os.ReadFile("/proc/kallsyms")
	return err == nil && strings.Contains(string(b), " cls_bpf_classify"), known
}

// asker is what asks the kernel for one kind after another. Where it does not answer,
// the qdiscs that stand are read once for all of them.
func (d *Device) asker() func(*discipline) (bool, error) {
	standing := sync.OnceValues(func() ([]string, error) { return standing(d.Conn) })
	return func(k *discipline) (bool, error) {
		has, err := d.hasKind(k)
		if !errors.Is(err, unix.EPERM) {
			return has, err
		}
		if k.listed() {
			return true, nil
		}
		kinds, err := standing()
		return slices.Contains(kinds, k.Name), err
	}
}

// hasKind asks the kernel for a kind. It orders a root qdisc of that kind with a
// shared block of filters for what arrives, which none of them can have: the
// kernel looks for the kind, loading its module if there is one, then refuses
// (qdisc_create before qdisc_block_indexes_set, net/sched/sch_api.c, v5.4 to
// v6.18). Nothing is made, and nothing that stands is changed, because the order
// is exclusive. clsact can have such a block, but not number 0, which is refused at
// the same place.
func (d *Device) hasKind(k *discipline) (bool, error) {
	e := rtnl.Encoder{}
	e.TcMsg(rtnl.TcMsg{Index: d.Index, Parent: rtnl.RootParent})
	e.AttrString(unix.TCA_KIND, k.Name)
	block, refused := uint32(1), unix.EOPNOTSUPP
	if k.Name == clsactKind {
		block, refused = 0, unix.EINVAL
	}
	e.Attr32(unix.TCA_INGRESS_BLOCK, block)
	flags := netlink.Create | netlink.Replace | netlink.Excl // whatever is at the root now
	_, err := d.Conn.Send([]netlink.Message{rtnl.Message(unix.RTM_NEWQDISC, flags, e.B)})
	switch rtnl.Errno(err) {
	case refused, unix.EEXIST: // EEXIST: it stands there now
		return true, nil
	case unix.ENOENT:
		return false, nil
	}
	if err == nil {
		err = errors.New("the kernel took what it should have refused")
	}
	return false, d.Fail("look for qdisc "+k.Name, err)
}

// listed says whether a trace of the discipline is to be seen without privileges.
// The simple queues are part of every kernel that has traffic control.
func (k *discipline) listed() bool {
	if k.module == pfifo.module {
		return true
	}
	has, _ := rtnl.HasModule(k.module)
	return has
}

// standing are the kinds of the qdiscs on all interfaces of the namespace. They show
// what is part of the kernel itself, also where the lists of its modules are not at
// hand, as in a container. It needs no privileges.
func standing(c *rtnl.Conn) (kinds []string, err error) {
	err = c.Dump(unix.RTM_GETQDISC, make([]byte, rtnl.SizeofTcMsg), func(body []byte) error {
		q, err := rtnl.DecodeQdisc(body)
		if !slices.Contains(kinds, q.Kind) {
			kinds = append(kinds, q.Kind)
		}
		return err
	})
	return kinds, rtnl.Fail("read qdiscs", "", err)
}

// settle settles one leaf qdisc.
func (k *kernelKinds) settle(q *hierarchy.Qdisc, s site) error {
	choice := defaultKinds
	if q.Kind != "" {
		choice = nil
		if d := kindNamed(q.Kind); d != nil {
			choice = []*discipline{d}
		}
	}
	for _, d := range choice {
		has, err := k.has(d)
		if err != nil {
			return err
		}
		if !has {
			continue
		}
		q.Kind = d.Name
		if q.Params, err = d.settle(*q, s); err != nil {
			return fmt.Errorf("qdisc %s: %w", q.Kind, err)
		}
		return nil
	}
	return k.lacking(q.Kind)
}

// lacking is the error about a kind that is not there, empty for all that are a
// default. It names those that are.
func (k *kernelKinds) lacking(kind string) error {
	var names []string
	for _, d := range disciplines {
		has, err := k.has(d)
		if err != nil {
			return err
		}
		if has {
			names = append(names, d.Name)
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("queueing is %w: use one with CONFIG_NET_SCHED", rtnl.ErrNotSupported)
	}
	module := ""
	if d := kindNamed(kind); d != nil {
		module = fmt.Sprintf(" (module %s)", d.module)
	}
	return fmt.Errorf("qdisc %q is %w%s: use %s", kind, rtnl.ErrNotSupported, module, strings.Join(names, ", "))
}
