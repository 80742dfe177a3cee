package rig

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc/lab"
)

// Port is where the far end takes in connections.
const Port = 5001

// Sink takes in connections at the far end, throws away what they bring, and counts it by the
// address that it came from.
type Sink struct {
	mu    sync.Mutex
	bytes map[netip.Addr]uint64
	conns map[net.Conn]bool // nil when it is closed
	wait  sync.WaitGroup
}

func newSink(t testing.TB, far *lab.NetNS) *Sink {
	t.Helper()
	s := &Sink{bytes: map[netip.Addr]uint64{}, conns: map[net.Conn]bool{}}
	var l net.Listener
	// It asks no pod whether it is still there: for one that is gone the node would answer.
	silent := net.ListenConfig{KeepAlive: -1}
	err := far.Do(func() (err error) {
		l, err = silent.Listen(context.WithoutCancel(t.Context()), "tcp", (&net.TCPAddr{Port: Port}).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.wait.Go(func() { s.accept(l) })
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		for c := range s.conns {
			c.Close()
		}
		s.conns = nil
		s.mu.Unlock()
		s.wait.Wait()
	})
	return s
}

func (s *Sink) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(time.Millisecond) // the next one may do
			continue
		}
		s.mu.Lock()
		if s.conns == nil {
			c.Close()
		} else {
			s.conns[c] = true
			s.wait.Go(func() { s.drain(c) })
		}
		s.mu.Unlock()
	}
}

func (s *Sink) drain(c net.Conn) {
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b)
		s.mu.Lock()
		s.bytes[from] += uint64(n)
		if err != nil {
			delete(s.conns, c)
		}
		s.mu.Unlock()
		if err != nil {
			c.Close()
			return
		}
	}
}

// Bytes is what has come from any of the addresses so far: payload, of both protocols.
func (s *Sink) Bytes(from ...netip.Addr) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum uint64
	for _, a := range from {
		sum += s.bytes[a]
	}
	return sum
}

// Window is what came from each of the addresses meanwhile, in the order of the addresses.
func (s *Sink) Window(d time.Duration, from ...netip.Addr) []uint64 {
	was := s.each(from)
	time.Sleep(d)
	is := s.each(from)
	for i := range is {
		is[i] -= was[i]
	}
	return is
}

func (s *Sink) each(from []netip.Addr) []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]uint64, len(from))
	for i, a := range from {
		all[i] = s.bytes[a]
	}
	return all
}
