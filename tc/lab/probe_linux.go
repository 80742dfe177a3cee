package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Echo answers the datagrams of [Probe].
type Echo struct {
	conn *net.UDPConn
	wait sync.WaitGroup
	stop func() bool
}

// NewEcho answers on a UDP port of a namespace (nil: the caller's), over IPv4
// and IPv6, until ctx ends or Close.
func NewEcho(ctx context.Context, n *NetNS, port uint16) (*Echo, error) {
	e := &Echo{}
	err := n.Do(func() error {
		lc := net.ListenConfig{Control: timestamps}
		c, err := lc.ListenPacket(ctx, "udp", fmt.Sprintf(":%d", port))
		if err == nil {
			e.conn = c.(*net.UDPConn)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("echo on port %d: %w", port, err)
	}
	e.wait.Go(func() { answer(e.conn) })
	e.stop = context.AfterFunc(ctx, func() { e.conn.Close() })
	return e, nil
}

// Close stops answering. Closing again is no error.
func (e *Echo) Close() error {
	e.stop()
	e.conn.Close()
	e.wait.Wait()
	return nil
}

// A probe starts with three numbers: its own, when it was sent, and, in the
// answer, when the kernel of the far end received it. Times are nanoseconds
// since 1970: both ends are on one machine and share its clock.
const probeHeader = 3 * 8

func answer(c *net.UDPConn) {
	b := make([]byte, 1<<16)
	for {
		n, at, from, err := receive(c, b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < probeHeader {
			continue
		}
		binary.NativeEndian.PutUint64(b[16:], uint64(at.UnixNano()))
		// An answer that cannot be sent is one that got lost.
		_, _ = c.WriteToUDPAddrPort(b[:n], from)
	}
}

// timestamps asks the kernel for the time at which it received a datagram: what
// the reader's own scheduling adds is no latency of the network.
func timestamps(_, _ string, c syscall.RawConn) error {
	var err error
	e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1)
	})
	return errors.Join(e, err)
}

// receive reads one datagram and the time at which it arrived.
func receive(c *net.UDPConn, b []byte) (int, time.Time, netip.AddrPort, error) {
	oob := make([]byte, 64)
	n, oobn, _, from, err := c.ReadMsgUDPAddrPort(b, oob)
	if err != nil {
		return 0, time.Time{}, from, err
	}
	at := time.Now()
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for _, m := range msgs {
			// Two 64-bit numbers on every machine (struct
			// __kernel_timespec).
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS_NEW && len(m.Data) >= int(unsafe.Sizeof([2]int64{})) {
				at = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return n, at, from, nil
}

// Probe says how to measure latency.
type Probe struct {
	NetNS    *NetNS             `json:"-"` // nil: the caller's
	To       netip.AddrPort     // of an [Echo]
	Count    int                // datagrams
	Interval time.Duration      // between them
	Size     int                // payload of a datagram, at least 24 bytes; 0 is that
	Control  func(fd int) error `json:"-"` // may set options of the socket
}

// Latency is what the datagrams of a [Probe] took.
type Latency struct {
	Sent int `json:"sent"`
	Lost int `json:"lost"` // not back a second after the last one was sent

	There     Quantiles `json:"there"`      // from the sender's call to the far kernel
	RoundTrip Quantiles `json:"round_trip"` // and back; includes the far process being woken
}

// Quantiles are those of a set of times; all 0 when the set is empty.
type Quantiles struct {
	Min time.Duration `json:"min_ns"`
	P50 time.Duration `json:"p50_ns"`
	P90 time.Duration `json:"p90_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
}

// Measure sends small datagrams at a steady pace to an [Echo] and returns how
// long they took.
func Measure(ctx context.Context, p Probe) (Latency, error) {
	size := max(p.Size, probeHeader)
	d := net.Dialer{Control: func(network, address string, c syscall.RawConn) error {
		err := timestamps(network, address, c)
		if err == nil && p.Control != nil {
			e := c.Control(func(fd uintptr) { err = p.Control(int(fd)) })
			err = errors.Join(err, e)
		}
		return err
	}}
	var conn *net.UDPConn
	err := p.NetNS.Do(func() error {
		c, err := d.DialContext(ctx, "udp", p.To.String())
		if err == nil {
			conn = c.(*net.UDPConn)
		}
		return err
	})
	if err != nil {
		return Latency{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	var there, back []time.Duration
	seen := make([]bool, p.Count)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, size+1)
		for len(back) < p.Count {
			n, at, _, err := receive(conn, b)
			if errors.Is(err, unix.ECONNREFUSED) {
				continue // nobody there yet: lost
			}
			if err != nil {
				return
			}
			i := binary.NativeEndian.Uint64(b)
			if n != size || i >= uint64(p.Count) || seen[i] {
				continue
			}
			seen[i] = true
			sent := time.Unix(0, int64(binary.NativeEndian.Uint64(b[8:])))
			far := time.Unix(0, int64(binary.NativeEndian.Uint64(b[16:])))
			there, back = append(there, far.Sub(sent)), append(back, at.Sub(sent))
		}
	}()
	next := pace{each: p.Interval, next: time.Now()}
	b := make([]byte, size)
	sent := 0
	for sent < p.Count && ctx.Err() == nil {
		if next.due(1) == 0 {
			next.sleep(ctx)
			continue
		}
		binary.NativeEndian.PutUint64(b, uint64(sent))
		binary.NativeEndian.PutUint64(b[8:], uint64(time.Now().UnixNano()))
		if _, err := conn.Write(b); err != nil && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOBUFS) {
			conn.Close()
			<-done
			return Latency{}, fmt.Errorf("probe %v: %w", p.To, errors.Join(err, ctx.Err()))
		}
		next.spend(1)
		sent++
	}
	err = conn.SetReadDeadline(time.Now().Add(time.Second))
	<-done
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return Latency{Sent: sent, Lost: sent - len(back), There: quantiles(there), RoundTrip: quantiles(back)}, err
}

func quantiles(t []time.Duration) Quantiles {
	if len(t) == 0 {
		return Quantiles{}
	}
	slices.Sort(t)
	at := func(percent int) time.Duration { return t[(len(t)-1)*percent/100] }
	return Quantiles{Min: t[0], P50: at(50), P90: at(90), P99: at(99), Max: t[len(t)-1]}
}
