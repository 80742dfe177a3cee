package socket

import (
	"net"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
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
