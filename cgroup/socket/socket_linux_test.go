package socket

import (
	"net"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/tctest"
)

// TestOf: a socket of this process is among its descriptors, has a name and a
// description, and nobody shares it.
func TestOf(t *testing.T) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at := c.LocalAddr().(*net.UDPAddr).AddrPort()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	pid := os.Getpid()
	all, err := Of(pid)
	if err != nil || all[int(f.Fd())] != st.Ino {
		t.Errorf("sockets %v, %v; want %d to be %d", all, err, f.Fd(), st.Ino)
	}
	if got, want := Name(st.Ino, pid), "its udp socket "+at.String(); got != want {
		t.Errorf("name %q, want %q", got, want)
	}
	got, err := Describe(t.Context(), map[Held]bool{{st.Ino, pid}: true}, map[int]bool{pid: true})
	want := Socket{PID: pid, Protocol: "udp", Local: at}
	if err != nil || len(got) != 1 || got[0].Local != want.Local || got[0].Protocol != want.Protocol || got[0].PID != pid || got[0].Remote.IsValid() || !slices.Equal(got[0].Shared, nil) {
		t.Errorf("described as %+v, %v; want %+v", got, err, want)
	}
}

// TestStaying: sockets of unix and netlink send by no interface, those of UDP may.
func TestStaying(t *testing.T) {
	for _, x := range []struct {
		family, typ int
		want        bool
	}{{unix.AF_UNIX, unix.SOCK_STREAM, true}, {unix.AF_NETLINK, unix.SOCK_RAW, true}, {unix.AF_INET, unix.SOCK_DGRAM, false}} {
		fd, err := unix.Socket(x.family, x.typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if x.family == unix.AF_NETLINK { // the kernel lists those that have a number
			if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
				t.Fatal(err)
			}
		}
		all, err := Of(os.Getpid())
		if err != nil || all[fd] == 0 {
			t.Fatalf("%v, %v", all, err)
		}
		if got := Staying(os.Getpid())[all[fd]]; got != x.want {
			t.Errorf("one of family %d: %v", x.family, got)
		}
	}
}

// TestDiagnose: a socket that waits for anybody is told from one that has another end, and
// has its own address.
func TestDiagnose(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	tctest.Require(t, err == nil, "IPv6 on the loopback interface")
	defer l.Close()
	c, err := net.Dial("tcp6", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	type end struct {
		protocol uint16
		local    string
	}
	open := map[end]bool{
		{unix.IPPROTO_TCP, l.Addr().String()}:      true,
		{unix.IPPROTO_TCP, c.LocalAddr().String()}: false,
		{unix.IPPROTO_UDP, u.LocalAddr().String()}: true,
	}
	err = Diagnose(0, func(s Diag) {
		at := end{s.Protocol, s.Local.String()}
		if want, ours := open[at]; ours {
			if s.Open != want {
				t.Errorf("%v: open %v", at, s.Open)
			}
			delete(open, at)
		}
	})
	if err != nil || len(open) > 0 {
		t.Errorf("not seen: %v, %v", open, err)
	}
}
