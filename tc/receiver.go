//go:build linux

package tc

import (
	"context"
	"errors"
	"slices"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Receiver is the port for what a device receives. Its tree stands on an IFB, an
// interface to which what arrives is redirected before the system sees it, and which hands
// it back in its turn. The IFB is a part of the tree: it is made when the root is
// and goes when the root goes.
//
// The action mirred redirects from every interface. A program's bpf_redirect does not
// from one without a link-layer header, such as a tun or WireGuard: the IFB is to have
// one, and the packet is dropped (__bpf_redirect_common, net/core/filter.c, v5.10 to
// v6.18).
//
// It satisfies [hierarchy.Part] and is not for use by several goroutines at once.
type Receiver struct {
	of Device // the interface, with the port and the packets of what it receives
}

var (
	_ hierarchy.Part     = (*Receiver)(nil)
	_ hierarchy.Rereader = (*Receiver)(nil)
)

// Receiver is the port for what the device receives.
func (d *Device) Receiver() *Receiver {
	r := &Receiver{*d}
	r.of.port.Direction = hierarchy.Receive
	r.of.packet = d.link.Received()
	return r
}

// Port implements [hierarchy.Part].
func (r *Receiver) Port() hierarchy.Port { return r.of.port }

// Index is that of the IFB, 0 where it is not there. It needs no privileges.
func (r *Receiver) Index() (uint32, error) {
	d, err := r.device()
	if d == nil {
		return 0, err
	}
	return d.Index, nil
}

// device is the IFB, nil where it is not there.
func (r *Receiver) device() (*Device, error) {
	l, err := link.FindIFB(r.of.Conn, r.of.link.Index)
	if l == nil {
		return nil, err
	}
	return r.on(*l), nil
}

// on is an IFB as a device that carries the tree.
func (r *Receiver) on(ifb link.Link) *Device {
	return &Device{
		Interface: rtnl.Interface{Conn: r.of.Conn, Name: ifb.Name, Index: uint32(ifb.Index)},
		link:      ifb,
		port:      r.of.port,
		packet:    r.of.packet,
	}
}

// Settle does for what is received what [Device.Settle] does for what is sent. Packets
// are those of the interface: the IFB gets each with its link-layer header put back, as
// long as it would be when sent. The error is [rtnl.ErrNotSupported] also where the
// kernel has no IFBs, which it needs CAP_NET_ADMIN to know where there are no lists of
// modules.
func (r *Receiver) Settle(ctx context.Context, t *hierarchy.Tree) error {
	has, err := link.HasIFB(r.of.Conn)
	switch {
	case err != nil && !errors.Is(err, rtnl.ErrNotPrivileged):
		return err
	case err == nil && !has:
		return link.NoIFB(r.of.Name)
	}
	return r.of.Settle(ctx, t)
}

// Read fills in the port of s as [Device.Read] does. Nothing stands there without the IFB,
// and nothing counts that stands on one through which packets do not get as they should:
// it is made anew then.
func (r *Receiver) Read(ctx context.Context, s *hierarchy.State) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p, err := r.read(nil)
	s.Device = r.of.port.Device
	s.Set(p)
	return err
}

func (r *Receiver) read(with *Counted) (hierarchy.PortState, error) {
	none := hierarchy.PortState{Port: r.of.port}
	d, err := r.device()
	if d == nil || !d.link.Sound() {
		return none, err
	}
	p, err := d.read(with)
	if err == nil && !p.Root.Ours() { // the IFB is ours, whatever somebody put there
		return none, nil
	}
	return p, err
}

// Reread implements hierarchy.Rereader.
func (r *Receiver) Reread(ctx context.Context, s *hierarchy.State, steps []hierarchy.Step) error {
	d, err := r.device()
	if err != nil {
		return err
	}
	if d == nil || !d.link.Sound() || slices.ContainsFunc(steps, isRoot) {
		return r.Read(ctx, s)
	}
	return d.Reread(ctx, s, steps)
}

func isRoot(s hierarchy.Step) bool {
	_, ok := s.Item().(*hierarchy.Root)
	return ok
}

// Do carries out steps as [Device.Do] does, on the IFB. Create of the root makes the IFB,
// or puts it right and takes away what stands on it; where the root is refused, an IFB
// that was made for it goes again. Delete of the root takes the IFB away once the packets
// that wait have been handed on, which takes two seconds at most; what is lost then is
// told to [rtnl.Config].Warn. Who redirects to it has to stop before.
func (r *Receiver) Do(ctx context.Context, steps []hierarchy.Step) (int, error) {
	done := 0
	for done < len(steps) {
		n, err := r.doSome(ctx, steps[done:])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// doSome carries out the first steps, up to the next that is about the root.
func (r *Receiver) doSome(ctx context.Context, steps []hierarchy.Step) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if i := slices.IndexFunc(steps[1:], isRoot); i >= 0 {
		steps = steps[:1+i]
	}
	root := isRoot(steps[0])
	if root && steps[0].Action != hierarchy.Delete {
		return r.create(ctx, steps)
	}
	d, err := r.device()
	switch {
	case err != nil:
		return 0, err
	case root && d == nil:
		return 1, nil
	case d == nil:
		return 0, r.of.stepError(steps[0], errors.New("its ifb is gone"))
	case root:
		if err := r.remove(ctx, d); err != nil {
			return 0, err
		}
		return 1, nil
	}
	return d.Do(ctx, steps)
}

// create makes the IFB, where it is not there, and what steps, from the root on, want.
func (r *Receiver) create(ctx context.Context, steps []hierarchy.Step) (int, error) {
	before, err := r.read(nil)
	if err != nil {
		return 0, err
	}
	ifb, made, err := link.EnsureIFB(r.of.Conn, r.of.link)
	if err != nil {
		return 0, err
	}
	d := r.on(ifb)
	if !before.Root.Ours() {
		err = d.strip()
	}
	n := 0
	if err == nil {
		n, err = d.Do(ctx, steps)
	}
	if n == 0 && made {
		err = errors.Join(err, link.RemoveIFB(r.of.Conn, ifb))
	}
	return n, err
}

// strip removes the root qdisc that somebody made.
func (d *Device) strip() error {
	found, err := d.Root()
	if root := found.Root(); err == nil && root.Handle != 0 {
		err = d.DeleteQdisc(uint32(root.Handle), rtnl.RootParent)
	}
	return d.Fail("remove root qdisc", err)
}

// Remove takes the IFB away, whatever stands on it. None is no error.
func (r *Receiver) Remove() error {
	d, err := r.device()
	if d == nil {
		return err
	}
	return link.RemoveIFB(r.of.Conn, d.link)
}

// remove takes the IFB away when it is empty.
func (r *Receiver) remove(ctx context.Context, d *Device) error {
	full, err := d.wait(ctx, func(hierarchy.ClassID) bool { return true })
	if err != nil {
		return err
	}
	var packets uint64
	var bytes hierarchy.Size
	for _, s := range full {
		packets, bytes = packets+uint64(s.QLen), bytes+hierarchy.Size(s.Backlog)
	}
	if err := link.RemoveIFB(r.of.Conn, d.link); err != nil {
		return err
	}
	if packets > 0 {
		r.of.Conn.Warnf("%v: %s is removed with %d packets (%v) still in its queues", r.of.port, d.Name, packets, bytes)
	}
	return nil
}

// Count fills in the port of s with its counters as [Device.Count] does.
func (r *Receiver) Count(ctx context.Context, s *hierarchy.State) (*Counted, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n := newCounted()
	p, err := r.read(n)
	s.Device = r.of.port.Device
	s.Set(p)
	return n, err
}

// Stats reads the counters of all classes as [Device.Stats] does: none without the IFB.
func (r *Receiver) Stats() ([]ClassStats, error) {
	d, err := r.device()
	if d == nil {
		return nil, err
	}
	return d.Stats()
}

// LeafStats reads the counters of all leaf qdiscs as [Device.LeafStats] does.
func (r *Receiver) LeafStats() ([]LeafStats, error) {
	d, err := r.device()
	if d == nil {
		return nil, err
	}
	return d.LeafStats()
}
