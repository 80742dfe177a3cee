package bpf

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelBorrow: a borrowed socket gets the override, one that has no memory left
// for it is named, and what is known of a socket otherwise stays.
func TestKernelBorrow(t *testing.T) {
	tctest.RequireRoot(t)
	s, err := loadSet(bind.WayBPF, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	const home = 42
	b, err := newBorrower(s, home)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	var sockets [2]int
	for i := range sockets {
		if sockets[i], err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(sockets[i])
	}
	full, other := sockets[0], sockets[1]
	for i := 0; err == nil; i++ {
		m := unix.IPv6Mreq{Multiaddr: [16]byte{0xff, 0x11, 14: byte(i >> 8), 15: byte(i)}, Interface: 1}
		err = unix.SetsockoptIPv6Mreq(full, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &m)
	}
	if !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ENOBUFS) {
		t.Fatal(err)
	}
	if err := s.sockets.Put(int32(other), &classifyVifSocket{Accepted: 1, Cached: 7}); err != nil {
		t.Fatal(err)
	}
	all, failed, err := b.carry(map[int]bool{os.Getpid(): true})
	if err != nil || len(all) == 0 || len(failed) != 1 || !strings.Contains(failed[0].Err.Error(), "optmem_max") {
		t.Errorf("carried %v, failed %v, %v; want one that failed", all, failed, err)
	}
	var v classifyVifSocket
	if err := s.sockets.Lookup(int32(other), &v); err != nil || v.Override != home || v.Accepted != 1 || v.Cached != 0 {
		t.Errorf("what is known of the other socket: %+v, %v", v, err)
	}
}
