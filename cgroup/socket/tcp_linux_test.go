package socket

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TestDecodeTCP reads an answer with the whole of a struct tcp_info, and what kernels send
// that have less of it.
func TestDecodeTCP(t *testing.T) {
	msg := make([]byte, inetDiagMsgLen)
	msg[0], msg[1] = unix.AF_INET, unix.BPF_TCP_ESTABLISHED
	binary.BigEndian.PutUint16(msg[4:], 40000)
	binary.BigEndian.PutUint16(msg[6:], 443)
	copy(msg[8:], []byte{192, 0, 2, 1})
	copy(msg[24:], []byte{192, 0, 2, 7})
	for at, n := range map[int]uint32{40: 3, 64: 65534, 68: 4711} {
		binary.NativeEndian.PutUint32(msg[at:], n)
	}
	info := make([]byte, 232)
	info[7] = 1
	for _, f := range []struct {
		at int
		n  uint32
	}{{24, 8}, {68, 20000}, {80, 10}, {100, 3}, {144, 5000}, {148, 1000}, {156, 100}, {192, 90}, {196, 2}} {
		binary.NativeEndian.PutUint32(info[f.at:], f.n)
	}
	for at, n := range map[int]uint64{120: 1 << 40, 128: 1 << 41, 168: 3000, 176: 2000, 184: 1000} {
		binary.NativeEndian.PutUint64(info[at:], n)
	}
	memory := make([]byte, 36)
	binary.NativeEndian.PutUint32(memory[12:], 87040)
	binary.NativeEndian.PutUint32(memory[20:], 65000)
	answer := func(info []byte) []byte {
		ae := netlink.NewAttributeEncoder()
		ae.Bytes(inetDiagInfo, info)
		ae.Bytes(inetDiagSKMemInfo, memory)
		ae.Uint32(inetDiagMark, 7)
		attrs, err := ae.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return append(msg, attrs...)
	}
	want := TCP{
		Inode: 4711, Local: netip.MustParseAddrPort("192.0.2.1:40000"), Remote: netip.MustParseAddrPort("192.0.2.7:443"),
		Device: 3, Mark: 7, UID: 65534,
		Busy: 3 * time.Millisecond, WindowLimited: 2 * time.Millisecond, BufferLimited: time.Millisecond,
		BytesAcked: 1 << 40, BytesReceived: 1 << 41, Segments: 100, Resent: 3, Delivered: 90, Marked: 2,
		Unacked: 8, Window: 10, Unsent: 5000, AppLimited: true, RTT: 20 * time.Millisecond, LeastRTT: time.Millisecond,
		Buffer: 87040, Used: 65000,
	}
	older, oldest := want, want
	older.Delivered, older.Marked = 0, 0                                    // before Linux 4.19
	oldest.Delivered, oldest.Marked, oldest.Busy = 0, 0, 0                  // before 4.10
	oldest.WindowLimited, oldest.BufferLimited, oldest.Segments = 0, 0, 100 // which 4.6 has
	for _, x := range []struct {
		length int
		want   TCP
	}{{232, want}, {192, older}, {160, oldest}} {
		got, err := decodeTCP(answer(info[:x.length]))
		if diff := cmp.Diff(x.want, got, cmpopts.EquateComparable(netip.AddrPort{})); err != nil || diff != "" {
			t.Errorf("of %d bytes: %v (-want +got)\n%s", x.length, err, diff)
		}
	}
	for _, short := range [][]byte{nil, msg[:71], answer(info)[:80]} {
		if _, err := decodeTCP(short); err == nil {
			t.Errorf("%d bytes are no answer", len(short))
		}
	}
}

// TestEachTCP finds both ends of a connection, with what was sent.
func TestEachTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if _, err := near.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Read(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	from, to := near.LocalAddr().(*net.TCPAddr).AddrPort(), near.RemoteAddr().(*net.TCPAddr).AddrPort()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // until it is acknowledged
		ends := map[netip.AddrPort]TCP{}
		if err := EachTCP(0, func(c TCP) { ends[c.Local] = c }); err != nil {
			t.Fatal(err)
		}
		sent, there := ends[from]
		if received, also := ends[to]; there && also && sent.Remote == to && received.Remote == from && sent.BytesAcked >= 1000 && sent.Segments > 0 && sent.Window > 0 && sent.Buffer > 0 && sent.RTT > 0 && received.BytesAcked < 1000 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("from %v: %+v; to %v: %+v", from, sent, to, ends[to])
		}
	}
}
