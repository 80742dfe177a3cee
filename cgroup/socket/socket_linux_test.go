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
