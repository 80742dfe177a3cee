//go:build linux

package tc

import (
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Counters are what every class and qdisc counts since it was made.
type Counters struct {
	Bytes      uint64
	Packets    uint64 // a packet that segmentation splits later counts as its segments
	Drops      uint32 // wraps around, as do the next two
	Requeues   uint32
	Overlimits uint32
	QLen       uint32 // packets that wait now, unsplit
	Backlog    uint32 // bytes that wait now
}

// ClassStats are the counters of one class.
type ClassStats struct {
	Class hierarchy.ClassID
	Counters
	Lends    uint32              // packets, unsplit, sent within the class's own rate
	Borrows  uint32              // packets sent with an ancestor's
	Estimate hierarchy.Bandwidth // the kernel's moving average; 0 where it keeps none (net.core/htb_rate_est)
}

// LeafStats are the counters of the qdisc of one leaf class. Its Drops include
// those that the qdisc makes when it takes a packet out, which the class does
// not see.
type LeafStats struct {
	Class hierarchy.ClassID
	Kind  string
	Counters
	Marks uint64 // packets that were marked (ECN, RFC 3168), with red and choke also such as were then dropped; it wraps around at 2^32, with fq at 2^64
}

// Stats reads the counters of all classes of ours, in no order. It needs no
// privileges.
func (d *Device) Stats() ([]ClassStats, error) {
	var stats []ClassStats
	err := d.eachClass(func(body []byte) error {
		s, err := decodeClassStats(body)
		stats = append(stats, s)
		return err
	})
	if err == nil && len(stats) == 0 {
		err = d.Check()
	}
	return stats, d.Fail("read counters", err)
}

// LeafStats reads the counters of all leaf qdiscs of ours, in no order. It costs
// more than [Device.Stats]: the kernel lists the qdiscs of every interface.
func (d *Device) LeafStats() ([]LeafStats, error) {
	var stats []LeafStats
	err := d.EachQdisc(func(q *rtnl.Qdisc) error {
		parent := hierarchy.ClassID(q.Parent)
		if parent.Major() != hierarchy.Major || parent.Minor() == 0 {
			return nil
		}
		s, err := decodeLeafStats(q)
		stats = append(stats, s)
		return err
	})
	if err == nil && len(stats) == 0 {
		err = d.Check()
	}
	return stats, d.Fail("read counters of qdiscs", err)
}

// Counted are the counters of a port, by class: of its classes and of the qdiscs of leaves.
type Counted struct {
	Classes map[hierarchy.ClassID]ClassStats
	Leaves  map[hierarchy.ClassID]LeafStats
}

func newCounted() *Counted {
	return &Counted{map[hierarchy.ClassID]ClassStats{}, map[hierarchy.ClassID]LeafStats{}}
}

// Count is [Device.Read] and the counters of what it reads, of the same two dumps: each
// class that is read has its counters, of that moment. It needs no privileges.
func (d *Device) Count(ctx context.Context, s *hierarchy.State) (*Counted, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n := newCounted()
	p, err := d.read(n)
	s.Device = d.port.Device
	s.Set(p)
	return n, err
}

// class adds what a message about a class counts.
func (n *Counted) class(body []byte) error {
	s, err := decodeClassStats(body)
	n.Classes[s.Class] = s
	return err
}

// leaf adds what a leaf qdisc counts.
func (n *Counted) leaf(q *rtnl.Qdisc) error {
	s, err := decodeLeafStats(q)
	n.Leaves[s.Class] = s
	return err
}

// Attributes within TCA_STATS2, of linux/gen_stats.h.
const (
	statsBasic     = 1
	statsRateEst   = 2
	statsQueue     = 3
	statsApp       = 4
	statsRateEst64 = 5
	statsPackets64 = 8
)

func decodeLeafStats(q *rtnl.Qdisc) (LeafStats, error) {
	s := LeafStats{Class: hierarchy.ClassID(q.Parent), Kind: q.Kind}
	err := s.decode(q.Stats2, func(typ uint16, v []byte) (err error) {
		if typ == statsApp {
			s.Marks, err = qdisc.Marks(q.Kind, v)
		}
		return err
	})
	return s, err
}

func decodeClassStats(body []byte) (s ClassStats, err error) {
	m, attrs, err := rtnl.DecodeTcMsg(body)
	if err != nil {
		return s, err
	}
	s.Class = hierarchy.ClassID(m.Handle)
	err = rtnl.EachAttr(attrs, func(typ uint16, v []byte) error {
		if typ != unix.TCA_STATS2 {
			return nil
		}
		return s.decode(v, func(typ uint16, v []byte) error {
			u := binary.NativeEndian.Uint32
			switch {
			case typ == statsApp && len(v) >= 20: // struct tc_htb_xstats
				s.Lends, s.Borrows = u(v), u(v[4:])
			case typ == statsRateEst && len(v) >= 8 && s.Estimate == 0:
				s.Estimate = hierarchy.Bandwidth(u(v)) * 8
			case typ == statsRateEst64:
				bps, err := rtnl.Uint64(v)
				if err != nil {
					return err
				}
				s.Estimate = hierarchy.Bandwidth(min(bps, rtnl.MaxRate)) * 8
			}
			return nil
		})
	})
	return s, err
}

// decode reads TCA_STATS2; more is called for what it does not know.
func (c *Counters) decode(stats2 []byte, more func(typ uint16, v []byte) error) error {
	return rtnl.EachAttr(stats2, func(typ uint16, v []byte) (err error) {
		u := binary.NativeEndian.Uint32
		switch typ {
		case statsBasic: // struct gnet_stats_basic
			if len(v) < 12 {
				return rtnl.ErrMalformed
			}
			c.Bytes, c.Packets = binary.NativeEndian.Uint64(v), uint64(u(v[8:]))
		case statsPackets64: // only from 2^32 packets on
			c.Packets, err = rtnl.Uint64(v)
			return err
		case statsQueue: // struct gnet_stats_queue
			if len(v) < 20 {
				return rtnl.ErrMalformed
			}
			c.QLen, c.Backlog, c.Drops, c.Requeues, c.Overlimits = u(v), u(v[4:]), u(v[8:]), u(v[12:]), u(v[16:])
		default:
			if more != nil {
				return more(typ, v)
			}
		}
		return nil
	})
}
