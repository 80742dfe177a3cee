//go:build linux

package tc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/foreign"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
)

const (
	// batchSize is the number of messages sent in one go. The replies to a
	// batch that fails from end to end fit in socketBuffer.
	batchSize = 192
	// drainTime bounds the wait for the packets of a class that is deleted,
	// drainPoll the time between two looks.
	drainTime = 2 * time.Second
	drainPoll = 5 * time.Millisecond
)

// r2q is given because the kernel wants it. It has no effect: every class
// comes with its quantum.
const r2q = 10

// directQueue is the number of packets that may pass HTB unshaped: none. What has no
// class, while the tree is made or because somebody took the rest away, is dropped
// (htb_enqueue, net/sched/sch_htb.c, v6.12), and so is what root's SO_PRIORITY sends to
// the qdisc's own id before the classifier is in place.
const directQueue = 0

// Do carries out steps on the root qdisc, classes and leaf qdiscs, in order, and
// returns how many took effect before the one that failed. Steps go to the
// kernel in batches, and it does not stop at a failing one: some behind it may
// have taken effect as well, so that the caller reads the state again. A plan
// of [hierarchy.Diff] is safe to be carried out so.
//
// Create of the root is refused with [rtnl.ErrForeign] where a root qdisc stands that
// somebody made; Change from that very one replaces it, and a later Delete
// through the same Device puts it back, as [foreign.Restore] does. A class's
// packets are waited for before it is deleted, at most two seconds; what is
// lost then is told to [rtnl.Config].Warn. A leaf qdisc keeps its backlog when only its
// parameters change and its kind can take that; otherwise the backlog is lost.
//
// The error is an [*rtnl.OpError] when the kernel refused.
func (d *Device) Do(ctx context.Context, steps []hierarchy.Step) (int, error) {
	done := 0
	for done < len(steps) {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		n, err := d.doSome(ctx, steps[done:])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// doSome carries out the first steps, as many as go together.
func (d *Device) doSome(ctx context.Context, steps []hierarchy.Step) (int, error) {
	if _, ok := steps[0].Item().(*hierarchy.Root); ok {
		return d.doRoot(steps)
	}
	if steps[0].Action == hierarchy.Delete {
		n := 1
		for n < len(steps) && steps[n].Action == hierarchy.Delete {
			if _, ok := steps[n].Item().(*hierarchy.Root); ok {
				break
			}
			n++
		}
		return d.doDelete(ctx, steps[:n])
	}
	return d.doBatch(steps)
}

// doBatch makes and changes as many classes and leaf qdiscs as fit in a batch. The
// first step may be the root qdisc's.
func (d *Device) doBatch(steps []hierarchy.Step) (int, error) {
	var msgs []netlink.Message
	var of []int // the step that a message belongs to
	n := 0
	var bad error
	for n < len(steps) && len(msgs) < batchSize && steps[n].Action != hierarchy.Delete {
		if _, ok := steps[n].Item().(*hierarchy.Root); ok && n > 0 {
			break
		}
		m, err := d.encode(steps[n])
		if err != nil {
			bad = d.stepError(steps[n], err)
			break
		}
		for range m {
			of = append(of, n)
		}
		msgs = append(msgs, m...)
		n++
	}
	failed, err := d.Conn.Send(msgs)
	if err != nil {
		at := 0
		if failed < len(of) {
			at = of[failed]
		}
		return at, d.stepError(steps[at], err)
	}
	return n, bad
}

// encode is what a Create or Change step asks of the kernel.
func (d *Device) encode(s hierarchy.Step) ([]netlink.Message, error) {
	flags := netlink.Create | netlink.Excl
	if s.Action == hierarchy.Change {
		flags = 0
	}
	switch item := s.New.(type) {
	case *hierarchy.Root:
		if s.Action == hierarchy.Change { // from another one
			flags = netlink.Create | netlink.Replace
		}
		return []netlink.Message{encodeRoot(d.Index, flags)}, nil
	case *hierarchy.Class:
		m, err := encodeClass(d.Index, flags, item)
		return []netlink.Message{m}, err
	case *hierarchy.Leaf:
		old, ok := s.Old.(*hierarchy.Leaf)
		anew := s.Action == hierarchy.Change && ok && !qdisc.InPlace(old.Qdisc, item.Qdisc)
		fresh := anew || s.Action == hierarchy.Create
		m, err := qdisc.Encode(d.Index, item, fresh)
		msgs := []netlink.Message{m}
		if anew {
			msgs = []netlink.Message{qdisc.EncodeDelete(d.Index, item.Class), m}
		}
		if err == nil && fresh && qdisc.Twice(item.Qdisc) {
			m, err = qdisc.Encode(d.Index, item, false)
			msgs = append(msgs, m)
		}
		return msgs, err
	}
	return nil, fmt.Errorf("no step for package tc")
}

// stepError says which step failed, nil where err is nil.
func (d *Device) stepError(s hierarchy.Step, err error) error {
	if err == nil {
		return nil
	}
	e := rtnl.NewOpError("", d.Name, err)
	switch item := s.Item().(type) {
	case *hierarchy.Root:
		e.Op, e.Class = s.Action.String()+" root qdisc", item.Handle
	case *hierarchy.Class:
		e.Op, e.Class, e.Path = s.Action.String()+" class", item.ID, item.Path
	case *hierarchy.Leaf:
		e.Op, e.Class, e.Path = s.Action.String()+" qdisc "+item.Qdisc.Kind+" of class", item.Class, item.Path
	default:
		e.Op = s.Action.String()
	}
	e.Op = d.where() + e.Op
	return e
}

// where says on which device, where paths and the port do not.
func (d *Device) where() string {
	if d.port.Device == d.Name {
		return ""
	}
	return "on " + d.Name + ": "
}

// doDelete deletes classes and leaf qdiscs once they are empty. Each is
// answered before the next is sent: a deletion cannot be taken back.
func (d *Device) doDelete(ctx context.Context, steps []hierarchy.Step) (int, error) {
	leaving := map[hierarchy.ClassID]hierarchy.Path{}
	for _, s := range steps {
		if c, ok := s.Old.(*hierarchy.Class); ok {
			leaving[c.ID] = c.Path
		}
	}
	if err := d.drain(ctx, leaving); err != nil {
		return 0, err
	}
	for i, s := range steps {
		if err := ctx.Err(); err != nil {
			return i, err
		}
		var m netlink.Message
		switch item := s.Old.(type) {
		case *hierarchy.Class:
			m = encodeClassRef(unix.RTM_DELTCLASS, d.Index, item.ID)
		case *hierarchy.Leaf:
			m = qdisc.EncodeDelete(d.Index, item.Class)
		default:
			return i, d.stepError(s, errors.New("no step for package tc"))
		}
		// ENOENT: it is gone already, a leaf qdisc with its class.
		if _, err := d.Conn.Send([]netlink.Message{m}); err != nil && rtnl.Errno(err) != unix.ENOENT {
			return i, d.stepError(s, err)
		}
	}
	return len(steps), nil
}

// drain waits until no packets are left in the given classes.
func (d *Device) drain(ctx context.Context, classes map[hierarchy.ClassID]hierarchy.Path) error {
	if len(classes) == 0 {
		return nil
	}
	full, err := d.wait(ctx, func(id hierarchy.ClassID) bool { _, ok := classes[id]; return ok })
	for _, s := range full {
		name := string(classes[s.Class])
		if name == "" {
			name = d.port.Device
		}
		d.Conn.Warnf("%s: %sclass %v is deleted with %d packets (%v) still in its queue", name, d.where(), s.Class, s.QLen, hierarchy.Size(s.Backlog))
	}
	return err
}

// Drain waits until no packets are left in the tree, as long as two seconds at most: where
// the device sends faster than packets come, there is a moment when none is.
func (d *Device) Drain(ctx context.Context) error {
	_, err := d.wait(ctx, func(hierarchy.ClassID) bool { return true })
	return err
}

// wait waits until no packets are left in the classes, as long as drainTime at most, and
// returns those in which there are.
func (d *Device) wait(ctx context.Context, in func(hierarchy.ClassID) bool) (full []ClassStats, err error) {
	deadline := time.Now().Add(drainTime)
	for {
		full = nil
		err := d.eachClass(func(body []byte) error {
			s, err := decodeClassStats(body)
			if in(s.Class) && s.QLen > 0 {
				full = append(full, s)
			}
			return err
		})
		if err != nil {
			return nil, d.Fail("wait for queued packets", err)
		}
		if len(full) == 0 || !time.Now().Before(deadline) {
			return full, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(drainPoll):
		}
	}
}

// doRoot makes or deletes the root qdisc. With it goes as much of the tree as fits in
// a batch: the class for what no binding claims is among the first, and the kernel works
// through a batch whatever becomes of us, so that the interface never stands there
// without it.
func (d *Device) doRoot(steps []hierarchy.Step) (int, error) {
	s := steps[0]
	if s.Action == hierarchy.Delete {
		err := error(nil)
		if d.former != nil && !d.former.Partial {
			if err = foreign.Restore(d.Interface, *d.former); err == nil {
				d.former = nil
			}
		} else {
			err = d.stepError(s, d.DeleteQdisc(uint32(hierarchy.ID(0)), rtnl.RootParent))
		}
		if err != nil {
			return 0, err
		}
		return 1, nil
	}
	found, err := d.Root()
	if err != nil {
		return 0, d.Fail("read qdiscs", err)
	}
	root := found.Root()
	if !root.Foreign() {
		return d.doBatch(steps)
	}
	if old, ok := s.Old.(*hierarchy.Root); !ok || *old != root {
		return 0, fmt.Errorf("%s: root qdisc %s %v is %w: set replace = true for the interface, or remove it with \"tc qdisc del dev %s root\"",
			d.Name, root.Kind, root.Handle, rtnl.ErrForeign, d.Name)
	}
	former, err := foreign.Describe(d.Interface, found)
	if err != nil {
		return 0, err
	}
	n, err := d.doBatch(steps)
	if n > 0 {
		d.former = &former
	}
	return n, err
}

// encodeRoot is the message that makes our root qdisc.
func encodeRoot(index uint32, flags netlink.HeaderFlags) netlink.Message {
	e := rtnl.Encoder{B: make([]byte, 0, 96)}
	e.TcMsg(rtnl.TcMsg{Index: index, Handle: uint32(hierarchy.ID(0)), Parent: rtnl.RootParent})
	e.AttrString(unix.TCA_KIND, "htb")
	e.Nest(unix.TCA_OPTIONS, func() {
		e.Attr(tcaHTBInit, func() { // struct tc_htb_glob of linux/pkt_sched.h
			e.Uint32(3) // version
			e.Uint32(r2q)
			e.Uint32(hierarchy.RestMinor)
			e.Uint32(0) // debug
			e.Uint32(0) // direct_pkts: the kernel's to say
		})
		e.Attr32(tcaHTBDirectQlen, directQueue)
	})
	return rtnl.Message(unix.RTM_NEWQDISC, flags, e.B)
}
