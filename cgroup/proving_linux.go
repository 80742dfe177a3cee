package cgroup

import (
	"errors"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/netcls"
	"github.com/vifshape/vifshape/cgroup/prove"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// Proving is what package prove has to know of the classifier on the interface. What to
// send by, how much, and counters are the caller's.
func (b *Binder) Proving() (prove.Config, error) {
	on, err := b.inForce()
	if err == nil && on == nil {
		err = errors.New("there is none on the interface")
	}
	var t *cgroupfs.Tree
	if err == nil {
		t, err = on.find()
	}
	if err == nil && t == nil {
		err = netcls.ErrNotMounted
	}
	if err != nil {
		return prove.Config{}, b.wrap(err)
	}
	c := prove.Config{Tree: t, Index: b.cfg.Index, NetNSFD: b.cfg.NetNSFD, Unseen: on.unseen, Nobody: func() (uint32, error) { return b.nobody(on) }}
	receives, looks, err := b.flows.Asks()
	if receives {
		c.Receive, c.Looks = b.askReceived, looks
	}
	return c, b.wrap(err)
}

// askReceived is the class that a received packet gets, 0 where it does not come to the tree.
func (b *Binder) askReceived(p *match.Packet) (class hierarchy.ClassID, err error) {
	ask := func() error {
		class, err = b.flows.Ask(p, b.cfg.Index)
		return err
	}
	if b.cfg.NetNSFD == 0 {
		err = ask()
	} else {
		err = cgroupfs.InNetNS(b.cfg.NetNSFD, ask)
	}
	return class, b.wrap(err)
}

// Ask is the class that the matches in force give a packet which is sent and has a class. The
// packet goes nowhere: it is what the program at the hook says.
func (b *Binder) Ask(p *match.Packet, class hierarchy.ClassID) (hierarchy.ClassID, error) {
	class, err := b.rules.Ask(p, class)
	return class, b.wrap(err)
}

// nobody is a user who is not bound.
func (b *Binder) nobody(on *choice) (uid uint32, err error) {
	if on.store.Holds(bind.TargetUser) != nil {
		return 0, nil
	}
	if b.is != way.Version {
		return 0, way.ErrOther
	}
	for {
		if _, bound, err := on.store.Get(way.Key{Kind: bind.TargetUser, ID: uint64(uid)}); err != nil || !bound {
			return uid, err
		}
		uid++
	}
}
