//go:build linux

package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Interface is one network interface of a [Conn]'s namespace: the one that has the
// index, whatever its name has become.
type Interface struct {
	Conn  *Conn
	Name  string
	Index uint32
}

// Check is an error where the interface is not there any more.
func (i Interface) Check() error {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], i.Index)
	_, err := i.Conn.Execute(Message(unix.RTM_GETLINK, 0, body))
	return err
}

// Get asks for one object of the interface, of which m says the rest. Without
// NLM_F_ECHO the answer would go to listeners only. The body is nil when there is none.
func (i Interface) Get(typ netlink.HeaderType, m TcMsg) ([]byte, error) {
	m.Index = i.Index
	e := Encoder{}
	e.TcMsg(m)
	replies, err := i.Conn.Execute(netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request | netlink.Echo}, Data: e.B})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, err
	case len(replies) != 1:
		return nil, fmt.Errorf("%d answers to one question", len(replies))
	}
	return replies[0].Data, nil
}

// EachQdisc calls f for each qdisc of the interface. The kernel always lists
// those of the whole namespace (tc_dump_qdisc, net/sched/sch_api.c, v6.12); of
// the others not more is looked at than the number of their interface.
func (i Interface) EachQdisc(f func(*Qdisc) error) error {
	e := Encoder{}
	e.TcMsg(TcMsg{Index: i.Index})
	return i.Conn.Dump(unix.RTM_GETQDISC, e.B, func(body []byte) error {
		m, _, err := DecodeTcMsg(body)
		if err != nil || m.Index != i.Index {
			return err
		}
		q, err := DecodeQdisc(body)
		if err != nil {
			return err
		}
		return f(&q)
	})
}

// Root reads the root qdisc, nil when none is shown, as of an interface that was never
// up.
func (i Interface) Root() (root *Qdisc, err error) {
	err = i.EachQdisc(func(q *Qdisc) error {
		if q.Parent == RootParent {
			root = q.Clone()
		}
		return nil
	})
	if err == nil && root == nil {
		err = i.Check() // one that is gone has none to show either
	}
	return root, err
}

// DeleteQdisc removes the qdisc of that handle at that place, and all below it.
func (i Interface) DeleteQdisc(handle, parent uint32) error {
	e := Encoder{}
	e.TcMsg(TcMsg{Index: i.Index, Handle: handle, Parent: parent})
	_, err := i.Conn.Send([]netlink.Message{Message(unix.RTM_DELQDISC, 0, e.B)})
	return err
}

// EachFilter calls f for the filters of one place, of whatever kind. A place
// that does not exist has none.
func (i Interface) EachFilter(parent uint32, f func(*Filter) error) error {
	e := Encoder{}
	e.TcMsg(TcMsg{Index: i.Index, Parent: parent})
	return i.Conn.Dump(unix.RTM_GETTFILTER, e.B, func(body []byte) error {
		m, attrs, err := DecodeTcMsg(body)
		if err != nil {
			return err
		}
		x := Filter{TcMsg: m}
		err = EachAttr(attrs, func(typ uint16, v []byte) error {
			switch typ {
			case unix.TCA_KIND:
				x.Kind = String(v)
			case unix.TCA_OPTIONS:
				x.Options = v
			case unix.TCA_CHAIN:
				chain, err := Uint32(v)
				x.Chain = chain
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
		return f(&x)
	})
}

// Fail makes an [*OpError] of what netlink returned, nil of nil.
func (i Interface) Fail(op string, err error) error { return Fail(op, i.Name, err) }
