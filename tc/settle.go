//go:build linux

package tc

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// Settle fills what the policy leaves open in t for this interface: bursts,
// quanta, the leaves' qdiscs and every parameter of them. It rounds all values
// to what the kernel keeps, so that t.State() equals what [Device.Read] gives
// after an apply, paths aside. Inner branches lose quantum and priority, which
// the kernel ignores.
//
// It asks the kernel which kinds of qdiscs it has, without changing anything,
// and needs CAP_NET_ADMIN for that. The error lists all that the kernel could
// not keep or does not have, each with its path; it is [ErrNotSupported] when a
// kind is missing.
func (d *Device) Settle(t *hierarchy.Tree) error {
	packet := d.packet
	mtu := d.mtu
	if t.MTU != 0 {
		packet, mtu = t.MTU, t.MTU
	}
	kinds, err := d.probe()
	if err != nil {
		return err
	}
	var errs []error
	refuse := func(b *hierarchy.Branch, err error) {
		errs = append(errs, fmt.Errorf("%s: %w", b.Path, err))
	}
	slowest := t.Root.Rate
	for b := range t.All() {
		if b.Leaf() {
			slowest = min(slowest, b.Rate)
		}
	}
	round := quantumTime(slowest, packet)
	for b := range t.All() {
		if err := settleClass(&b.Class, packet); err != nil {
			refuse(b, err)
		}
		if !b.Leaf() {
			b.Quantum, b.Prio = 0, 0
			continue
		}
		if b.Quantum == 0 {
			b.Quantum = quantum(b.Rate, packet, round)
		}
		if err := kinds.settle(&b.Qdisc, site{rate: b.Rate, ceil: b.Ceil, mtu: mtu, packet: packet}); err != nil {
			refuse(b, err)
		}
	}
	return errors.Join(errs...)
}

// settleClass rounds a class and fills its bursts.
func settleClass(c *hierarchy.Class, packet hierarchy.Size) error {
	if err := checkLink(c.Link); err != nil {
		return err
	}
	c.Rate, c.Ceil = c.Rate.Kernel(), c.Ceil.Kernel()
	if c.Burst == 0 {
		c.Burst = defaultBurst(c.Rate, packet)
	}
	if c.CBurst == 0 {
		c.CBurst = defaultBurst(c.Ceil, packet)
	}
	var err, cerr error
	if c.Burst, err = roundTicks(c.Burst, c.Rate); err != nil {
		return fmt.Errorf("burst %w", err)
	}
	if c.CBurst, cerr = roundTicks(c.CBurst, c.Ceil); cerr != nil {
		return fmt.Errorf("cburst %w", cerr)
	}
	return nil
}

// kernelKinds says which disciplines the kernel has.
type kernelKinds map[*discipline]bool

// probe asks the kernel for each kind. It orders a root qdisc of that kind with
// a shared block of filters for what arrives, which none of them can have: the
// kernel looks for the kind, loading its module if there is one, then refuses
// (qdisc_create before qdisc_block_indexes_set, net/sched/sch_api.c, v5.4 to
// v6.18). Nothing is made, and nothing that stands is changed, because the order
// is exclusive.
func (d *Device) probe() (kernelKinds, error) {
	kinds := make(kernelKinds, len(disciplines))
	for _, k := range disciplines {
		e := encoder{}
		e.tcMsg(tcMsg{index: d.Index, parent: rootParent})
		e.attrString(tcaKind, k.Name)
		e.attr32(tcaIngressBlock, 1)
		flags := netlink.Create | netlink.Replace | netlink.Excl // whatever is at the root now
		_, err := d.c.send([]netlink.Message{message(unix.RTM_NEWQDISC, flags, e.b)})
		switch errno(err) {
		case unix.EOPNOTSUPP, unix.EEXIST: // EEXIST: it stands there now
			kinds[k] = true
		case unix.ENOENT:
		default:
			if err == nil {
				err = errors.New("the kernel took what it should have refused")
			}
			return nil, d.fail("look for qdisc "+k.Name, err)
		}
	}
	return kinds, nil
}

// settle settles one leaf qdisc.
func (k kernelKinds) settle(q *hierarchy.Qdisc, s site) error {
	if q.Kind == "" {
		for _, d := range defaultKinds {
			if k[d] {
				q.Kind = d.Name
				break
			}
		}
	}
	d := kindNamed(q.Kind)
	if d == nil || !k[d] {
		module := "sch_" + q.Kind
		if d != nil {
			module = d.module
		}
		return fmt.Errorf("qdisc %q is %w (module %s): use %s", q.Kind, ErrNotSupported, module, k)
	}
	p, err := d.settle(*q, s)
	if err != nil {
		return fmt.Errorf("qdisc %s: %w", q.Kind, err)
	}
	q.Params = p
	return nil
}

// String lists the kinds that are there.
func (k kernelKinds) String() string {
	var names []string
	for _, d := range disciplines {
		if k[d] {
			names = append(names, d.Name)
		}
	}
	if len(names) == 0 {
		return "a kernel with CONFIG_NET_SCHED"
	}
	return strings.Join(names, ", ")
}
