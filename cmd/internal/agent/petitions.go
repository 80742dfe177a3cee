package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

const (
	// A peer may take agentReadTime for its request, and as long to take the reply.
	agentReadTime = 5 * time.Second
	// agentWorkTime is how long a request may wait for others, and take.
	agentWorkTime = 20 * time.Second
	// Connections at once, each with a goroutine and two descriptors.
	mostPeers       = 64
	mostPeersOfUser = 8
	// agentPause follows each request. Other writers look for the store's lock more
	// often than that, so that no number of requests keeps them out.
	agentPause = 25 * time.Millisecond
)

// petitions answers users to whom branches are delegated, and root, who tells of pods. The
// kernel says who asks; nothing that they say of themselves is believed.
type petitions struct {
	cfg      Config
	said     *remarks
	store    *record.Store
	listener *net.UnixListener
	records  map[string]os.FileInfo // by interface: those that delegates are of
	to       []bind.Delegate        // of any branch
	end      context.CancelFunc
	turn     chan struct{} // holds a token while a request is carried out
	told     atomic.Int64  // when the last one of pods was, in nanoseconds of Unix

	mu    sync.Mutex
	peers map[uint32]int // connections by user
	total int
	work  sync.WaitGroup
}

// newPetitions makes the agent's socket and answers at it until close. The caller is the
// agent, of which there is one: a socket that is there is left over.
func newPetitions(m *shaper.Machine, cfg Config, said *remarks) (*petitions, error) {
	file := m.Store.AgentSocketFile()
	if err := record.UnlessGone(os.Remove(file)); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: file, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)                     // it may be another agent's by then
	if err := os.Chmod(file, 0o666); err != nil { // who asks is seen to
		return nil, errors.Join(err, l.Close())
	}
	ctx, end := context.WithCancel(context.Background())
	s := &petitions{cfg: cfg, said: said, store: m.Store, listener: l, end: end, turn: make(chan struct{}, 1), peers: map[uint32]int{}}
	s.work.Go(func() { s.serve(ctx) })
	return s, nil
}

// close ends it. The socket's file stays. What was begun is done, or put back.
func (s *petitions) close() {
	s.end()
	s.listener.Close() // it fails only where it is closed already
	s.work.Wait()
}

func (s *petitions) serve(ctx context.Context) {
	for {
		c, err := s.listener.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			s.said.tell(shaper.Remark{Level: shaper.Warning, Text: fmt.Sprintf("the agent's socket: %v", err)})
			time.Sleep(100 * time.Millisecond) // until there are descriptors again
			continue
		}
		p, err := newPeer(c)
		if err == nil {
			err = s.known(p.uid)
		}
		if err == nil {
			err = s.admit(p)
		}
		if err != nil {
			s.reply(c, nil, err)
			c.Close()
			if p != nil {
				p.close()
			}
			continue
		}
		s.work.Go(func() {
			defer s.leave(p)
			places, err := s.answer(ctx, c, p)
			s.reply(c, places, err)
		})
	}
}

// podsPause is how long after pods were told of the agent looks at what they are bound by: what
// they need has been done, and more are about to come, which need not wait for that.
const podsPause = 100 * time.Millisecond

// pods says whether pods were told of just now.
func (s *petitions) pods() bool { return time.Since(time.Unix(0, s.told.Load())) < podsPause }

// known refuses all to whom nothing is delegated, at little cost: whoever has the
// numbers of many users, as for user namespaces, could use all connections up. It is
// for one goroutine.
func (s *petitions) known(id uint32) error {
	if err := s.refresh(); err != nil {
		return err
	}
	named := func(d bind.Delegate) bool { u, ok := shaper.UID(d); return ok && u == id }
	if id != 0 && !slices.ContainsFunc(s.to, named) {
		return shaper.DeniedError{Err: fmt.Errorf("no branch is delegated to user %d", id)}
	}
	return nil
}

// refresh reads the records that have changed, and all with them.
func (s *petitions) refresh() error {
	names, err := s.store.Interfaces()
	if err != nil {
		return err
	}
	now := make(map[string]os.FileInfo, len(names))
	same := len(names) == len(s.records)
	for _, n := range names {
		st, err := os.Lstat(s.store.File(n))
		if err != nil {
			continue // it has gone meanwhile
		}
		was, ok := s.records[n]
		same = same && ok && os.SameFile(was, st) && was.ModTime().Equal(st.ModTime())
		now[n] = st
	}
	if same {
		return nil
	}
	s.records, s.to = now, nil
	for n := range now {
		r, err := s.store.Load(n)
		if err != nil {
			continue // it is reported when it is used
		}
		for _, d := range r.Delegated {
			s.to = append(s.to, d.To...)
		}
	}
	slices.Sort(s.to)
	s.to = slices.Compact(s.to)
	return nil
}

// admit counts a connection, or refuses it.
func (s *petitions) admit(p *peer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= mostPeers || s.peers[p.uid] >= mostPeersOfUser {
		return &client.Error{Code: client.Busy, Text: "the agent has more requests than it can take: try again later"}
	}
	s.total++
	s.peers[p.uid]++
	return nil
}

func (s *petitions) leave(p *peer) {
	p.conn.Close()
	p.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.peers[p.uid]--; s.peers[p.uid] == 0 {
		delete(s.peers, p.uid)
	}
}

// reply says how it went. A peer that does not listen is its own loss.
func (s *petitions) reply(c net.Conn, places []client.Place, err error) {
	r := client.Reply{Version: client.Version, Code: s.cfg.Code(err), Places: places}
	if err != nil {
		r.Error, r.Hints = err.Error(), s.cfg.Hints(err)
	}
	b, err := json.Marshal(r)
	if err == nil && len(b) < client.MaxReply {
		_ = c.SetWriteDeadline(time.Now().Add(agentReadTime))
		_, _ = c.Write(append(b, '\n'))
	}
}

// answer reads a request and carries it out.
func (s *petitions) answer(ctx context.Context, c *net.UnixConn, p *peer) ([]client.Place, error) {
	if err := c.SetReadDeadline(time.Now().Add(agentReadTime)); err != nil {
		return nil, err
	}
	// At the agent's end nobody is waited for.
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })
	q, err := readRequest(c)
	stop()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, agentWorkTime)
	defer cancel()
	select {
	case s.turn <- struct{}{}:
		if q.Op == client.Pods { // a pod waits, and root need not be kept from anything
			defer func() { <-s.turn }()
		} else {
			defer time.AfterFunc(agentPause, func() { <-s.turn })
		}
	case <-ctx.Done():
		return nil, &client.Error{Code: client.Busy, Text: "the agent did not come to it in time: try again later"}
	}
	m, err := shaper.Open(s.cfg.RunDir, s.said.tell)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if q.Op == client.Pods {
		s.told.Store(time.Now().UnixNano())
		defer func() { s.told.Store(time.Now().UnixNano()) }()
		return tellPods(ctx, m, q, p)
	}
	return nil, grant(ctx, m, q, p)
}

// BadRequestError says that a request is none.
type BadRequestError struct{ Err error }

func (e BadRequestError) Error() string { return e.Err.Error() }
func (e BadRequestError) Unwrap() error { return e.Err }

func badRequest(format string, args ...any) error {
	return BadRequestError{fmt.Errorf(format, args...)}
}

// readRequest reads one line and takes it apart.
func readRequest(r io.Reader) (q client.Request, err error) {
	line, err := bufio.NewReaderSize(io.LimitReader(r, client.MaxMessage), 4096).ReadBytes('\n')
	switch {
	case errors.Is(err, io.EOF) && len(line) == client.MaxMessage:
		return q, badRequest("a request has %d bytes at most", client.MaxMessage)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return q, badRequest("no request came within %v", agentReadTime)
	case err != nil:
		return q, badRequest("a request is one line")
	}
	d := json.NewDecoder(strings.NewReader(string(line)))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		// Of another version first: its keys may be others.
		var v struct{ Version int }
		if json.Unmarshal(line, &v) == nil && v.Version != client.Version && v.Version != 0 {
			return q, otherVersion(v.Version)
		}
		return q, badRequest("a request is an object of JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return q, badRequest("a request is one object of JSON")
	}
	if q.Version != client.Version {
		return q, otherVersion(q.Version)
	}
	return q, check(&q)
}

func otherVersion(v int) error {
	return badRequest("the request is of version %d, and this agent has %d: use the agent's vifshape", v, client.Version)
}

// check refuses what is no branch's path. Names come into file names and messages.
func check(q *client.Request) error {
	if q.Op == client.Pods {
		return checkPods(q)
	}
	if len(q.Run)+len(q.Gone) > 0 {
		return badRequest("pods are told of by %q", client.Pods)
	}
	names := strings.Split(string(q.Path), "/")
	for i, n := range names {
		err := hierarchy.CheckName(n)
		if i == 0 { // an interface, which may have other names
			err = nil
			if n == "" || n == "." || n == ".." || len(n) >= unix.IFNAMSIZ || strings.ContainsFunc(n, func(r rune) bool { return r <= ' ' || r == 0x7f || r == 0xfffd }) {
				err = fmt.Errorf("%q is no interface", n)
			}
		}
		if err != nil || len(names) < 2 || len(names) > hierarchy.MaxDepth+1 {
			return badRequest("%q is no branch: write the interface and the branches down to it with one slash between them, as in eth0/web", q.Path)
		}
	}
	return nil
}

// grant does what a peer asks for, if it may have it.
func grant(ctx context.Context, m *shaper.Machine, q client.Request, p *peer) error {
	who, err := petitionerOf(m, p)
	if err != nil {
		return err
	}
	switch q.Op {
	case client.Enter:
		return enterPeer(ctx, m, q.Path, who, p)
	case client.Add:
		return m.Add(ctx, amend.Branch{Path: q.Path, Rate: q.Rate, Ceil: q.Ceil, Prio: q.Prio, Qdisc: q.Qdisc, Ingress: q.Ingress, By: p.uid}, who)
	case client.Remove:
		return m.Remove(ctx, q.Path, who)
	}
	return badRequest("the agent knows no %q", q.Op)
}

// petitionerOf is a peer with the branches that it is in now.
func petitionerOf(m *shaper.Machine, p *peer) (*shaper.Petitioner, error) {
	if err := p.alive(); err != nil {
		return nil, err
	}
	homes, err := homesOf(m, p.pid)
	if err == nil {
		err = p.alive() // and so it was this process that was looked at
	}
	return &shaper.Petitioner{UID: p.uid, Homes: homes}, err
}

// enterPeer puts a peer into the home of a branch.
func enterPeer(ctx context.Context, m *shaper.Machine, path hierarchy.Path, who *shaper.Petitioner, p *peer) error {
	_, r, err := m.Device(path.Interface())
	if err != nil {
		return err
	}
	if err := who.MayEnter(r, path); err != nil {
		return err
	}
	x, target, err := m.Home(ctx, path)
	if err != nil {
		return err
	}
	defer x.Binder.Close()
	// Somebody may have put it into a branch since it was looked at. Who does so by
	// vifshape waits.
	unlock, err := m.Store.Lock(ctx, "run "+string(path))
	if err != nil {
		return err
	}
	defer unlock()
	if who, err = petitionerOf(m, p); err != nil {
		return err
	}
	if err := who.MayEnter(x.Record, path); err != nil {
		return err
	}
	// The kernel takes a number, not a descriptor. Were the peer to end, be waited for,
	// and its number to come round again right here, the process that has it then would
	// be moved in its place.
	h, err := x.Binder.Homes()
	if err == nil {
		err = home.Join(h.Tree, target, p.pid)
	}
	if err != nil {
		return err
	}
	return p.alive()
}

// homesOf are the branches in whose homes the threads of a process live; none: it is
// in no branch. A tag and a cgroup of version 2 may be those of different ones.
func homesOf(m *shaper.Machine, pid int) ([]hierarchy.Path, error) {
	var homes []hierarchy.Path
	for _, way := range []bind.Way{bind.WayBPF, bind.WayNetCls} {
		targets, whole, err := cgroupfs.Of(way, pid)
		if err != nil {
			return nil, err
		}
		if !whole {
			return nil, fmt.Errorf("the agent cannot see which branch process %d is in: it runs in a cgroup namespace of its own", pid)
		}
		for _, target := range targets {
			ns, branch, ok := home.Parse(target)
			switch {
			case !ok:
			case ns != m.Store.NetNS:
				return nil, shaper.DeniedError{Err: fmt.Errorf("process %d is in branch %s of another network namespace", pid, branch)}
			default:
				homes = append(homes, m.Deepest(branch))
			}
		}
	}
	slices.Sort(homes)
	return slices.Compact(homes), nil
}

// peer is the process at the other end of a connection.
type peer struct {
	conn *net.UnixConn
	uid  uint32
	pid  int
	fd   int // pidfd
}

func (p *peer) close() { unix.Close(p.fd) }

// newPeer asks the kernel who has connected. Since Linux 6.5 it also says which
// process, once and for all (SO_PEERPIDFD). Before that the number may have come round
// to another process by now, which is found out if that one is another user's or
// starts only now. Else a user's own process is taken for another one of the same user.
func newPeer(c *net.UnixConn) (*peer, error) {
	now, err := uptime()
	if err != nil {
		return nil, err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	p := &peer{conn: c, fd: -1}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		if cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); failed == nil {
			p.fd, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		}
	})
	switch {
	case err != nil || cred == nil:
		return nil, fmt.Errorf("who asks cannot be told: %w", errors.Join(err, failed))
	case cred.Pid <= 0:
		return nil, errors.New("who asks cannot be seen from the agent's pid namespace")
	}
	p.uid, p.pid = cred.Uid, int(cred.Pid)
	switch {
	case failed == nil:
		return p, nil
	case !errors.Is(failed, unix.ENOPROTOOPT):
		return nil, fmt.Errorf("process %d asked, and has ended: %w", p.pid, failed)
	}
	if p.fd, err = unix.PidfdOpen(p.pid, 0); err != nil {
		return nil, fmt.Errorf("process %d asked, and has ended: %w", p.pid, err)
	}
	if err := p.same(now); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// same says whether the process with the peer's number can be the one that had
// connected by a time since the machine's start.
func (p *peer) same(by time.Duration) error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return err
	}
	start, err := cgroupfs.Started(p.pid)
	if err != nil {
		return err
	}
	another := fmt.Errorf("process %d asked, and its number is another's now", p.pid)
	var uid, euid uint32
	if _, ids, ok := strings.Cut(string(status), "\nUid:"); ok {
		_, err = fmt.Sscan(ids, &uid, &euid)
	}
	if err != nil || euid != p.uid {
		return another
	}
	if start == 0 || start > by {
		return another
	}
	return p.alive()
}

// uptime is the time since the machine's start, as processes' starts are counted.
func uptime() (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return time.Duration(t.Nano()), err
}

// alive says whether the peer still runs, and with that, that its number is its own.
func (p *peer) alive() error {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n > 0:
			return fmt.Errorf("process %d asked, and has ended", p.pid)
		default:
			return nil
		}
	}
}
