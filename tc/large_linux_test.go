package tc_test

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/tctest"
)

// The queue that a leaf gets where the kernel has nothing better takes the
// largest packets that a socket can send, however slow the branch is.
func TestKernelLargePackets(t *testing.T) {
	tctest.RequireRoot(t)
	b, p := veth(t)
	tree := b.tree(10*hierarchy.Mbit, leaf("slow", hierarchy.Mbit, "bfifo"))
	b.apply(tree)
	const port, segment, segments = 9, 1400, 45
	var (
		far  net.PacketConn
		near net.Conn
	)
	ctx := t.Context()
	err := p.Far.Do(func() (err error) {
		far, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp4", netip.AddrPortFrom(p.Far4, port).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	err = p.Near.Do(func() (err error) {
		near, err = (&net.Dialer{ControlContext: func(_ context.Context, _, _ string, c syscall.RawConn) (err error) {
			e := c.Control(func(fd uintptr) {
				if err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, segment); err == nil {
					err = into(tree.Find("eth0/slow").ID)(int(fd))
				}
			})
			if e != nil {
				return e
			}
			return err
		}}).DialContext(ctx, "udp4", far.LocalAddr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	if _, err := near.Write(make([]byte, segments*segment)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	for got := 0; got < segments; got++ {
		if err := far.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if n, _, err := far.ReadFrom(buf); err != nil || n != segment {
			t.Fatalf("segment %d of %d: %d bytes, %v", got+1, segments, n, err)
		}
	}
}
