package explain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// Subject is what is asked about, one of them.
type Subject struct {
	Path    hierarchy.Path
	PID     int
	Binding bind.Binding
}

// Samples are the looks at counters in a time for a good answer: each costs a dump, and shares
// of them are compared with a half.
const Samples = 20

// Look takes samples over a time on one interface. Connections are seen with root alone.
func Look(ctx context.Context, m *shaper.Machine, iface string, of Subject, took time.Duration, samples int) (*Evidence, error) {
	x, s, err := m.TreeOf(ctx, iface)
	if err == nil {
		defer x.Binder.Close()
		err = x.Losses(s)
	}
	lost, no := (*shaper.LostError)(nil), (*shaper.UnshapedError)(nil)
	switch {
	case errors.As(err, &lost), errors.As(err, &no):
		return &Evidence{Path: of.Path, Unshaped: err.Error()}, nil
	case err != nil:
		return nil, err
	}
	l := &look{m: m, x: x, of: of, e: &Evidence{Path: of.Path, Samples: samples, Took: took}, conns: map[uint64]*watched{}, spaces: map[uint64]*os.File{}, above: map[hierarchy.ClassID]hierarchy.ClassID{}}
	for _, c := range x.On(s).Classes {
		l.above[c.ID] = c.Parent
	}
	l.holds[hierarchy.Send], l.holds[hierarchy.Receive] = holding(x.On(s)), holding(x.In(s))
	if of.Path != "" {
		if err := x.CheckPath(of.Path); err != nil {
			return nil, err
		}
	}
	defer func() {
		for _, f := range l.spaces {
			f.Close()
		}
	}()
	if err := l.begin(ctx, s); err != nil {
		return nil, err
	}
	if err := l.sample(ctx); err != nil {
		return nil, err
	}
	l.e.Sends, l.e.Receives = l.port(x.On(s), l.sent), l.port(x.In(s), l.received)
	return l.e, l.connections()
}

// look is one under way.
type look struct {
	m     *shaper.Machine
	x     *shaper.Target
	of    Subject
	e     *Evidence
	above map[hierarchy.ClassID]hierarchy.ClassID // parents
	holds [2]map[hierarchy.ClassID]string         // by direction, see holding
	took  time.Duration

	sent, received map[hierarchy.ClassID]*counted
	holders        map[uint64]holder   // of the sockets that are looked at, by inode; nil: none may be
	spaces         map[uint64]*os.File // the other network namespaces that these are in, by inode
	conns          map[uint64]*watched
}

// counted is a class.
type counted struct {
	first, last tc.ClassStats
	waiting     int
	backlog     uint64 // the sum over the samples
}

// holder has a socket open.
type holder struct {
	pid    int
	name   string
	branch hierarchy.Path
}

// watched is a connection.
type watched struct {
	here                              bool // in the network namespace of the interface
	first, last                       socket.TCP
	seen, limited, unsent, bufferFull int
	underWay                          float64
}

// begin finds the branch and the sockets that are to be looked at.
func (l *look) begin(ctx context.Context, s hierarchy.State) error {
	x, e := l.x, l.e
	if x.Blind != nil && l.of.Path == "" {
		return x.Blind
	}
	bound := x.Named(s.Bound, false)
	held, err := x.Held(bound)
	if err != nil && (!errors.Is(err, caps.ErrNotPrivileged) || l.of.Path == "") {
		return err
	}
	pids, err := l.processes(ctx)
	if err != nil {
		return err
	}
	if l.of.Path == "" {
		l.locate(bound, held, pids)
	}
	if x.Blind != nil {
		e.Unseen = "that takes root"
		return nil
	}
	all, err := x.Binder.Census(ctx, pids)
	if errors.Is(err, caps.ErrNotPrivileged) {
		e.Unseen = err.Error()
		return nil
	}
	if err != nil {
		return err
	}
	inside := map[int]bool{}
	for _, b := range bound {
		if b.Target.Kind != bind.TargetNone && x.StartOf(b).Below(e.Path) {
			for _, pid := range held[b.Target] {
				inside[pid] = true
			}
		}
	}
	if err := l.hold(all, inside); err != nil {
		return err
	}
	if l.of.Path == "" && len(l.holders) == 0 && len(e.Elsewhere) == 0 && mute(pids) {
		e.Mute = e.Who + " has no socket by which it could send or receive"
		if of := children(l.of.PID); len(of) > 0 {
			e.Mute += "; its children have: " + strings.Join(of, ", ")
		}
	}
	return nil
}

// hold keeps the sockets that the branch carries, or that are of those who were asked about,
// and notes which of those who are bound to it others carry.
func (l *look) hold(all map[int]cgroup.ProcessSockets, inside map[int]bool) error {
	l.holders = map[uint64]holder{}
	stray := map[hierarchy.Path][]string{}
	for pid, p := range all {
		is, err := cgroupfs.ReadProcess(pid)
		if err != nil {
			continue // it has ended
		}
		h := holder{pid: pid, name: is.Name}
		ours := inside[pid] || l.of.Path == ""
		if p.Elsewhere && ours {
			if err := l.enter(h); err != nil {
				return err
			}
		}
		for inode, class := range p.Sockets {
			if h.branch = ""; class != 0 {
				h.branch = l.x.BranchOf(class)
			}
			in := h.branch.Below(l.e.Path)
			if in || l.of.Path == "" {
				l.holders[inode] = h
				ours = true
			}
			if !in && inside[pid] && class != 0 {
				stray[h.branch] = append(stray[h.branch], fmt.Sprintf("%s[%d]", words.Printable(h.name), pid))
			}
		}
		if ours {
			l.e.Processes = append(l.e.Processes, Process{pid, h.name})
		}
	}
	for _, p := range slices.Sorted(maps.Keys(stray)) {
		who := slices.Compact(slices.Sorted(slices.Values(stray[p])))
		l.e.Elsewhere = append(l.e.Elsewhere, fmt.Sprintf("sockets of %s are carried by %s: they were opened before it was bound, or handed on", strings.Join(who, ", "), p))
	}
	return nil
}

// enter adds the sockets of a process in another network namespace: what it sends is
// forwarded here, if it comes here at all, and is the branch's where its interface is bound.
func (l *look) enter(h holder) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.pid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has ended
	}
	if err != nil {
		return err
	}
	var is unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &is); err != nil {
		return errors.Join(err, f.Close())
	}
	if l.spaces[is.Ino] == nil {
		l.spaces[is.Ino] = f
	} else {
		f.Close()
	}
	all, err := socket.Of(h.pid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	h.branch = l.e.Path
	for _, inode := range all {
		l.holders[inode] = h
	}
	return err
}

// processes are those whose sockets are looked at: of a branch that may be anybody's.
func (l *look) processes(ctx context.Context) (pids []int, err error) {
	switch {
	case l.of.PID != 0:
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", l.of.PID)); err != nil {
			return nil, fmt.Errorf("process %d is not there; one in a container has another number outside", l.of.PID)
		}
		return []int{l.of.PID}, nil
	case l.of.Path == "":
		path := hierarchy.Path(l.x.Record.Interface)
		entry, class, _ := l.x.Record.Leaf(path)
		r, err := l.x.Binder.Resolve(ctx, []resolve.Branch{{Path: path, Home: path, Entry: entry, Class: class, Bind: []bind.Binding{l.of.Binding}}}, nil)
		if err != nil {
			return nil, err
		}
		if len(r.Pending) > 0 {
			return nil, fmt.Errorf("%v: %s", l.of.Binding, r.Pending[0].Reason)
		}
		if err := r.Err(); err != nil {
			return nil, err
		}
		in, err := l.x.Held(r.Bound)
		for _, b := range r.Bound {
			pids = append(pids, in[b.Target]...)
		}
		if err == nil && len(pids) == 0 {
			err = fmt.Errorf("%v has no process", l.of.Binding)
		}
		return pids, err
	}
	names, err := os.ReadDir("/proc")
	for _, n := range names {
		if pid, err := strconv.Atoi(n.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// locate finds the branch of processes that were asked about: that of the binding which has
// most of them.
func (l *look) locate(bound []hierarchy.Bound, held map[bind.Target][]int, pids []int) {
	path := hierarchy.Path(l.x.Record.Interface)
	rest, _, _ := l.x.Record.Leaf(path)
	who, most := l.of.Binding.String(), 0
	if l.of.PID != 0 {
		who = fmt.Sprintf("process %d", l.of.PID)
	}
	l.e.Path, l.e.Who, l.e.By = rest, who, fmt.Sprintf("%s is bound to no branch on %s: %s carries it", who, path, rest)
	for _, b := range bound {
		n := 0
		for _, pid := range held[b.Target] {
			if slices.Contains(pids, pid) {
				n++
			}
		}
		if n > most {
			most = n
			l.e.Path = l.x.BranchOf(b.Class)
			l.e.By = fmt.Sprintf("%s is in %s by %s", who, l.e.Path, words.Printable(cmp.Or(b.From, b.Target.String())))
		}
	}
}

// sample looks at counters and connections.
func (l *look) sample(ctx context.Context) error {
	l.sent, l.received = map[hierarchy.ClassID]*counted{}, map[hierarchy.ClassID]*counted{}
	began := time.Now()
	samples := l.e.Samples
	for i := range samples + 1 {
		if i > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Until(began.Add(l.e.Took * time.Duration(i) / time.Duration(samples)))):
			}
		}
		sent, err := l.x.Device.Stats()
		if err != nil {
			return err
		}
		l.took = time.Since(began)
		received, err := l.x.Receiver.Stats()
		if err != nil {
			return err
		}
		l.count(l.sent, sent, l.holds[hierarchy.Send], i)
		l.count(l.received, received, l.holds[hierarchy.Receive], i)
		// These cost more. The first says whether the kernel can tell, though nobody has any.
		if l.holders != nil && (i == 0 || i%4 == 0 && len(l.holders) > 0) {
			err := l.tcp()
			if errors.Is(err, socket.ErrNoDiag) {
				l.e.Unseen, l.holders, err = err.Error(), nil, nil
			}
			if err != nil {
				return err
			}
		}
	}
	if len(l.holders) == 0 {
		return nil
	}
	return l.udp()
}

// count adds a sample; the one before the time began says where counters stood. What waits in
// a leaf waits in all above it, of which HTB counts none, unless its queue holds it back.
func (l *look) count(all map[hierarchy.ClassID]*counted, now []tc.ClassStats, holds map[hierarchy.ClassID]string, i int) {
	waits := map[hierarchy.ClassID]uint64{}
	for _, c := range now {
		x := all[c.Class]
		if x == nil {
			x = &counted{first: c}
			all[c.Class] = x
		}
		x.last = c
		for at := c.Class; i > 0 && c.QLen > 0 && at.Minor() != 0; at = l.above[at] {
			waits[at] += uint64(c.Backlog)
			if holds[c.Class] != "" {
				break
			}
		}
	}
	for at, backlog := range waits {
		if x := all[at]; x != nil {
			x.waiting++
			x.backlog += backlog
		}
	}
}

// tcp looks at connections, in the network namespaces of those who have them.
func (l *look) tcp() error {
	seen := func(t socket.TCP, here bool) {
		if _, ours := l.holders[t.Inode]; !ours {
			return
		}
		w := l.conns[t.Inode]
		if w == nil {
			w = &watched{first: t, here: here}
			l.conns[t.Inode] = w
		}
		w.last = t
		w.seen++
		if t.AppLimited {
			w.limited++
		}
		if t.Unsent > 0 {
			w.unsent++
		}
		if t.Buffer > 0 && float64(t.Used) >= bufferFull*float64(t.Buffer) {
			w.bufferFull++
		}
		if t.Window > 0 {
			w.underWay += float64(t.Unacked) / float64(t.Window)
		}
	}
	return l.each(func(netNS int) error {
		return socket.EachTCP(netNS, func(t socket.TCP) { seen(t, netNS == 0) })
	})
}

// udp looks at sockets of UDP likewise.
func (l *look) udp() error {
	return l.each(func(netNS int) error {
		return socket.EachUDP(netNS, func(u socket.UDP) {
			h, ours := l.holders[u.Inode]
			if !ours {
				return
			}
			d := Datagram{PID: h.pid, Name: h.name, Local: u.Local.String(), Waits: uint64(u.Unsent)}
			if u.Remote.IsValid() {
				d.Remote = u.Remote.String()
			}
			l.e.Datagrams = append(l.e.Datagrams, d)
		})
	})
}

// each looks into the network namespaces of those who have sockets.
func (l *look) each(look func(netNS int) error) error {
	if err := look(0); err != nil {
		return err
	}
	for _, f := range l.spaces {
		if err := look(int(f.Fd())); err != nil {
			return err
		}
	}
	return nil
}

// bufferFull is the part of a send buffer from which on it is: a program waits for a third of
// it before it goes on (sk_stream_wspace, sk_stream_is_writeable, include/net/sock.h, v6.12).
const bufferFull = 0.66

// port is the tree of one direction with what was counted.
func (l *look) port(s hierarchy.PortState, all map[hierarchy.ClassID]*counted) (p Port) {
	leaves, holds := map[hierarchy.ClassID]bool{}, holding(s)
	for _, q := range s.Leaves {
		leaves[q.Class] = true
	}
	samples := l.e.Samples
	for _, c := range s.Classes {
		v := Level{Path: l.x.BranchOf(c.ID), Rate: c.Rate, Ceil: c.Ceil, Prio: c.Prio, Leaf: leaves[c.ID], Holds: holds[c.ID]}
		if n := all[c.ID]; n != nil && n.last.Bytes >= n.first.Bytes {
			v.Gets = per(n.last.Bytes-n.first.Bytes, l.took)
			v.Packets = n.last.Packets - n.first.Packets
			v.Drops = uint64(n.last.Drops - n.first.Drops)
			v.Waiting, v.Backlog = float64(n.waiting)/float64(samples), n.backlog/uint64(samples)
		}
		p = append(p, v)
	}
	return p
}

// asleep says whether those who were asked about have connections alone, by which nothing goes
// and for which nothing waits.
func (l *look) asleep() bool {
	for inode := range l.holders {
		w := l.conns[inode]
		if w == nil || w.seen < 2 || w.first.BytesAcked != w.last.BytesAcked || w.first.BytesReceived != w.last.BytesReceived || w.last.Unsent > 0 || w.last.Unacked > 0 {
			return false
		}
	}
	return len(l.holders) > 0
}

// holding are the kinds of the queues that make packets wait by themselves, by their classes.
func holding(s hierarchy.PortState) map[hierarchy.ClassID]string {
	all := map[hierarchy.ClassID]string{}
	for _, l := range s.Leaves {
		if qdisc.Holds(l.Qdisc) {
			all[l.Class] = l.Qdisc.Kind
		}
	}
	return all
}

func per(bytes uint64, took time.Duration) hierarchy.Bandwidth {
	if took <= 0 {
		return 0
	}
	return hierarchy.Bandwidth(float64(bytes) * 8 / took.Seconds())
}

// connections makes evidence of what was seen of each, the busiest first, and last those that
// leave by other interfaces.
func (l *look) connections() error {
	if len(l.conns) == 0 {
		return nil
	}
	routes, err := newRoutes(l.m.Conn, l.x.Device.Port().Device)
	if err != nil {
		return err
	}
	for inode, w := range l.conns {
		h := l.holders[inode]
		n := float64(w.seen)
		share := func(was, is time.Duration) float64 { return min(1, max(0, float64(is-was)/float64(l.took))) }
		of := func(part, all uint32) float64 {
			if all == 0 {
				return 0
			}
			return float64(part) / float64(all)
		}
		if w.seen < 2 {
			continue // it has begun or ended
		}
		c := Connection{
			PID: h.pid, Name: h.name, Branch: h.branch, Local: w.last.Local.String(), Remote: w.last.Remote.String(),
			Sends: per(w.last.BytesAcked-w.first.BytesAcked, l.took), Receives: per(w.last.BytesReceived-w.first.BytesReceived, l.took), Waits: uint64(w.last.Unsent), Busy: share(w.first.Busy, w.last.Busy),
			WindowLimited: share(w.first.WindowLimited, w.last.WindowLimited), BufferLimited: share(w.first.BufferLimited, w.last.BufferLimited),
			BufferFull: float64(w.bufferFull) / n, AppLimited: float64(w.limited) / n, Unsent: float64(w.unsent) / n, UnderWay: w.underWay / n,
			Resent: of(w.last.Resent-w.first.Resent, w.last.Segments-w.first.Segments), Marked: of(w.last.Marked-w.first.Marked, w.last.Delivered-w.first.Delivered),
			RTT: w.last.RTT, LeastRTT: w.last.LeastRTT,
		}
		if w.here {
			if c.LeavesBy, err = routes.other(w.last); err != nil {
				return err
			}
		}
		l.e.Connections = append(l.e.Connections, c)
	}
	if l.of.Path == "" && l.asleep() {
		l.e.Mute = fmt.Sprintf("%s sends and receives nothing: it has %s, and nothing else open", l.e.Who, words.Number(len(l.conns), "idle connection", "idle connections"))
	}
	slices.SortFunc(l.e.Connections, func(a, b Connection) int {
		return cmp.Or(cmp.Compare(min(1, len(a.LeavesBy)), min(1, len(b.LeavesBy))), cmp.Compare(b.weight(), a.weight()), cmp.Compare(b.Sends, a.Sends), cmp.Compare(a.Local, b.Local))
	})
	return nil
}
