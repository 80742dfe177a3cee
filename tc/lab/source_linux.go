package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// Traffic says what to send. Its zero value with To and Protocol set is one
// flow, as fast as it will go, until the context ends.
type Traffic struct {
	NetNS    *NetNS         `json:"-"` // nil: the caller's
	Protocol string         // "tcp" or "udp"
	To       netip.AddrPort // of a [Sink]
	Flows    int            // sockets; 0 is one

	// Bytes of payload to send, divided among the flows; 0 is no limit. TCP
	// then waits until the sink has all of it; UDP rounds up to datagrams.
	Bytes uint64

	// UDP only. Size is the payload of a datagram, 0 is 1200 bytes. Segments
	// above 1 hands that many datagrams to the kernel as one packet to be
	// segmented (at most 64, and 65507 bytes). Rate is that of all flows
	// together on the wire, as [Count.Wire] counts it; 0 is no limit.
	Size     int
	Segments int
	Rate     hierarchy.Bandwidth

	// Batch is how many datagrams of a flow become due together, for the rate on
	// the whole; 0 is one. Few and large batches cost a sender little.
	Batch int

	// Lag is how far behind Rate a sender that had to wait for a processor may
	// be and still catch up; what is due for longer is never sent. 0 is 10 ms: a
	// stall is not followed by a burst then.
	Lag time.Duration

	// Control may set options of each socket before it is connected.
	Control func(fd int) error `json:"-"`
}

// Source is traffic under way.
type Source struct {
	cancel  context.CancelFunc
	wait    sync.WaitGroup
	header  uint64 // bytes in front of the payload of a datagram, 0 for TCP
	payload atomic.Uint64
	packets atomic.Uint64 // datagrams
	mu      sync.Mutex    // guards err
	err     error
}

// Send sends until the context or the traffic ends, whichever is first. That
// the context ended is an error only where t.Bytes had not been sent yet. A
// datagram that the network drops or refuses is sent all the same.
func Send(ctx context.Context, t Traffic) (Count, error) {
	s, err := Start(ctx, t)
	if err != nil {
		return Count{}, err
	}
	err = s.Wait()
	return s.Count(), err
}

// Start opens the sockets, connects them and sends in the background. The
// caller calls [Source.Wait] or [Source.Stop].
func Start(ctx context.Context, t Traffic) (*Source, error) {
	if t.Flows == 0 {
		t.Flows = 1
	}
	if t.Size == 0 {
		t.Size = 1200
	}
	if t.Lag == 0 {
		t.Lag = 10 * time.Millisecond
	}
	t.Segments, t.Batch = max(t.Segments, 1), max(t.Batch, 1)
	switch {
	case t.Protocol != "tcp" && t.Protocol != "udp":
		return nil, fmt.Errorf("protocol %q is neither tcp nor udp", t.Protocol)
	case t.Flows < 0:
		return nil, fmt.Errorf("%d flows are too few", t.Flows)
	case t.Size < 0 || t.Segments > 64 || t.Size*t.Segments > 65507:
		return nil, fmt.Errorf("%d datagrams of %d bytes do not fit into one packet", t.Segments, t.Size)
	case t.Protocol == "tcp" && t.Rate != 0:
		return nil, errors.New("a rate can be set for udp only")
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &Source{cancel: cancel}
	flow := s.tcpFlow
	if t.Protocol == "udp" {
		flow = s.udpFlow
		s.header = headerEthernet + headerIPv6 + headerUDP
		if t.To.Addr().Unmap().Is4() {
			s.header = headerEthernet + headerIPv4 + headerUDP
		}
	}
	conns, err := connect(ctx, t)
	if err != nil {
		cancel()
		return nil, err
	}
	for i, c := range conns {
		share := t.Bytes / uint64(t.Flows)
		if uint64(i) < t.Bytes%uint64(t.Flows) {
			share++
		}
		s.wait.Go(func() {
			err := flow(ctx, c, t, share)
			c.Close()
			if err != nil && ctx.Err() != nil {
				err = nil // the end of the context closed the socket
				if t.Bytes != 0 {
					err = context.Cause(ctx)
				}
			}
			if err != nil {
				s.mu.Lock()
				s.err = errors.Join(s.err, fmt.Errorf("%s to %v: %w", t.Protocol, t.To, err))
				s.mu.Unlock()
			}
		})
	}
	return s, nil
}

// Wait waits for the end of the traffic and says what went wrong.
func (s *Source) Wait() error {
	s.wait.Wait()
	s.cancel()
	return s.err
}

// Stop ends the traffic. What is queued in sockets is thrown away, what is
// queued in the kernel's queueing disciplines is not.
func (s *Source) Stop() error {
	s.cancel()
	return s.Wait()
}

// Count is what has been handed to the kernel so far. For TCP Wire and Packets
// stay 0: what was made of the data only the [Sink] knows.
func (s *Source) Count() Count {
	c := Count{Time: time.Now(), Payload: s.payload.Load(), Packets: s.packets.Load()}
	if s.header != 0 {
		c.Wire = c.Payload + c.Packets*s.header
	}
	return c
}

// rawConn is what both kinds of connection have in common.
type rawConn interface {
	net.Conn
	syscall.Conn
}

func connect(ctx context.Context, t Traffic) ([]rawConn, error) {
	var d net.Dialer
	if t.Control != nil {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			e := c.Control(func(fd uintptr) { err = t.Control(int(fd)) })
			return errors.Join(e, err)
		}
	}
	var conns []rawConn
	err := t.NetNS.Do(func() error {
		for range t.Flows {
			c, err := d.DialContext(ctx, t.Protocol, t.To.String())
			if err != nil {
				return err
			}
			conns = append(conns, c.(rawConn))
		}
		return nil
	})
	if err != nil {
		for _, c := range conns {
			c.Close()
		}
		return nil, err
	}
	return conns, nil
}

// chunk is how much a TCP flow hands to the kernel at a time.
const chunk = 256 << 10

// tcpFlow sends zero bytes from a buffer: cheaper than sendfile from memory,
// which ends in packets of many small pages.
func (s *Source) tcpFlow(ctx context.Context, c rawConn, t Traffic, limit uint64) error {
	tcp := c.(*net.TCPConn)
	stop := context.AfterFunc(ctx, func() {
		tcp.SetLinger(0)
		tcp.Close()
	})
	defer stop()
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	data := make([]byte, chunk)
	var sent uint64
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for ctx.Err() == nil && (t.Bytes == 0 || sent < limit) {
			n := uint64(chunk)
			if t.Bytes != 0 {
				n = min(n, limit-sent)
			}
			k, err := unix.Write(int(fd), data[:n])
			if err == unix.EAGAIN {
				return false
			}
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				failed = err
				return true
			}
			sent += uint64(k)
			s.payload.Add(uint64(k))
		}
		return true
	})
	if err = errors.Join(err, failed, ctx.Err()); err != nil {
		return err
	}
	if err := tcp.CloseWrite(); err != nil {
		return err
	}
	// The sink closes its side when it has read everything.
	_, err = tcp.Read(make([]byte, 1))
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// udpFlow sends datagrams, several with one call.
func (s *Source) udpFlow(ctx context.Context, c rawConn, t Traffic, limit uint64) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if t.Segments > 1 {
		var e error
		err := raw.Control(func(fd uintptr) {
			e = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, t.Size)
		})
		if err = errors.Join(err, e); err != nil {
			return fmt.Errorf("segmentation of datagrams: %w", err)
		}
	}
	pace := newPace(t, s.header)
	data := make([]byte, t.Size*t.Segments)
	iov := unix.Iovec{Base: unsafe.SliceData(data)}
	iov.SetLen(len(data))
	var msgs [32]mmsghdr
	for i := range msgs {
		msgs[i].hdr.Iov = &iov
		msgs[i].hdr.SetIovlen(1)
	}
	left := ^uint64(0) // datagrams
	if t.Bytes != 0 {
		left = (limit + uint64(t.Size) - 1) / uint64(t.Size)
	}
	for left > 0 {
		n := pace.due(min(left, uint64(len(msgs)*t.Segments)))
		if n == 0 {
			if !pace.sleep(ctx) {
				return ctx.Err()
			}
			continue
		}
		// Either whole packets of Segments datagrams, or one short packet.
		calls := n / uint64(t.Segments)
		iov.SetLen(len(data))
		if calls == 0 {
			calls = 1
			iov.SetLen(int(n) * t.Size)
		}
		per := uint64(iov.Len) / uint64(t.Size)
		var sent uintptr
		var errno syscall.Errno
		err := raw.Write(func(fd uintptr) bool {
			for {
				sent, _, errno = unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(calls), unix.MSG_DONTWAIT, 0, 0)
				if errno != unix.EINTR {
					return errno != unix.EAGAIN
				}
			}
		})
		if err != nil {
			return err
		}
		switch errno {
		case 0:
		case unix.ECONNREFUSED, unix.ENOBUFS:
			// Nobody listens, or a full queue: the network's affair.
			sent = 1
		default:
			return errno
		}
		k := uint64(sent) * per
		s.payload.Add(k * uint64(t.Size))
		s.packets.Add(k)
		pace.spend(k)
		left -= min(k, left)
	}
	runtime.KeepAlive(data)
	return nil
}

// pace spreads datagrams over time.
type pace struct {
	each time.Duration // per datagram; 0 is no limit
	more time.Duration // what is waited for, beyond the next datagram
	next time.Time     // when the next datagram is due
	lag  time.Duration // what is due for longer is forgotten
}

// nap is the longest time between two looks at the context.
const nap = 10 * time.Millisecond

func newPace(t Traffic, header uint64) *pace {
	p := &pace{next: time.Now(), lag: t.Lag}
	if t.Rate != 0 {
		bits := float64((uint64(t.Size)+header)*8) * float64(t.Flows)
		p.each = max(time.Duration(bits/float64(t.Rate)*float64(time.Second)), 1)
		p.more = time.Duration(t.Batch-1) * p.each
	}
	return p
}

// due is how many datagrams, at most n, may be sent now.
func (p *pace) due(n uint64) uint64 {
	if p.each == 0 {
		return n
	}
	now := time.Now()
	if late := now.Add(-p.lag); p.next.Before(late) {
		p.next = late
	}
	if p.next.After(now) {
		return 0
	}
	return min(n, 1+uint64(now.Sub(p.next)/p.each))
}

func (p *pace) spend(n uint64) { p.next = p.next.Add(time.Duration(n) * p.each) }

// sleep waits until the next datagram is due, false when ctx ended. The
// runtime's timers may be a millisecond late, the kernel's are not.
func (p *pace) sleep(ctx context.Context) bool {
	d := min(time.Until(p.next.Add(p.more)), max(nap, p.more))
	if d > 0 && p.more > 0 {
		time.Sleep(d) // what is due in batches may be late
	} else if d > 0 {
		ts := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&ts, nil) // woken early by a signal: asked again
	}
	return ctx.Err() == nil
}
