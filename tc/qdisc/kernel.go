//go:build linux

package qdisc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Kernel says which kinds of qdiscs the kernel has. It asks for each when it has
// to, and once: asking loads modules, as using them would. Nothing is changed by it.
// Without CAP_NET_ADMIN the kernel does not answer; the kinds are then those that the
// lists of its modules name, and those that stand on any interface. Between two
// questions it sees whether the context has ended; one may take as long as loading a
// module does.
type Kernel struct {
	ask   func(*discipline) (bool, error)
	known map[*discipline]bool
}

// Ask is for questions to the kernel, asked for an interface.
func Ask(i rtnl.Interface) *Kernel {
	return &Kernel{ask: asker(i), known: map[*discipline]bool{}}
}

func (k *Kernel) has(ctx context.Context, d *discipline) (bool, error) {
	has, ok := k.known[d]
	if ok {
		return has, nil
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	has, err := k.ask(d)
	if err == nil {
		k.known[d] = has
	}
	return has, err
}

// Leaves says which of [Kinds] the kernel has and which it lacks.
func (k *Kernel) Leaves(ctx context.Context) (have, lacking []string, err error) {
	for _, d := range disciplines {
		has, err := k.has(ctx, d)
		switch {
		case err != nil:
			return nil, nil, err
		case has:
			have = append(have, d.Name)
		default:
			lacking = append(lacking, d.Name)
		}
	}
	return have, lacking, nil
}

// Lacks says which of the given kinds the kernel has not: also those that are no
// leaves, such as "htb" and "clsact".
func (k *Kernel) Lacks(ctx context.Context, kinds ...string) (lacking []string, err error) {
	for _, name := range kinds {
		d := &discipline{Kind: hierarchy.Kind{Name: name}, module: "sch_" + name}
		if name == clsactKind {
			d.module = "sch_ingress" // which has both
		}
		has, err := k.has(ctx, d)
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

// asker is what asks the kernel for one kind after another. Where it does not answer,
// the qdiscs that stand are read once for all of them.
func asker(i rtnl.Interface) func(*discipline) (bool, error) {
	standing := sync.OnceValues(func() ([]string, error) { return standing(i.Conn) })
	return func(k *discipline) (bool, error) {
		has, err := hasKind(i, k)
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
func hasKind(i rtnl.Interface, k *discipline) (bool, error) {
	e := rtnl.Encoder{}
	e.TcMsg(rtnl.TcMsg{Index: i.Index, Parent: rtnl.RootParent})
	e.AttrString(unix.TCA_KIND, k.Name)
	block, refused := uint32(1), unix.EOPNOTSUPP
	if k.Name == clsactKind {
		block, refused = 0, unix.EINVAL
	}
	e.Attr32(unix.TCA_INGRESS_BLOCK, block)
	flags := netlink.Create | netlink.Replace | netlink.Excl // whatever is at the root now
	_, err := i.Conn.Send([]netlink.Message{rtnl.Message(unix.RTM_NEWQDISC, flags, e.B)})
	switch rtnl.Errno(err) {
	case refused, unix.EEXIST: // EEXIST: it stands there now
		return true, nil
	case unix.ENOENT:
		return false, nil
	}
	if err == nil {
		err = errors.New("the kernel took what it should have refused")
	}
	return false, i.Fail("look for qdisc "+k.Name, err)
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

// Settle states every parameter of a leaf qdisc at its place: what q has, else a
// default, rounded as the kernel rounds, and the kind where q names none. The error is
// [rtnl.ErrNotSupported] where the kernel has not the kind.
func (k *Kernel) Settle(ctx context.Context, q *hierarchy.Qdisc, s Site) error {
	choice := defaultKinds
	if q.Kind != "" {
		choice = nil
		if d := kindNamed(q.Kind); d != nil {
			choice = []*discipline{d}
		}
	}
	for _, d := range choice {
		has, err := k.has(ctx, d)
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
	return k.lacking(ctx, q.Kind)
}

// lacking is the error about a kind that is not there, empty for all that are a
// default. It names those that are, but none in the place of netem.
func (k *Kernel) lacking(ctx context.Context, kind string) error {
	names, _, err := k.Leaves(ctx)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("queueing is %w: use one with CONFIG_NET_SCHED", rtnl.ErrNotSupported)
	}
	instead := "use " + strings.Join(names, ", ")
	if kind == netem.Name {
		instead = "no other delays and loses packets"
	}
	module := ""
	if d := kindNamed(kind); d != nil {
		module = fmt.Sprintf(" (module %s)", d.module)
	}
	return fmt.Errorf("qdisc %q is %w%s: %s", kind, rtnl.ErrNotSupported, module, instead)
}
