package escape

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy/bind"
)

// What is known of sockets below IP.
const (
	bypassWhy = "nothing on the interface sees what goes past the queue, and cgroup v1 has no programs that refuse the socket option"
	packetWhy = "rules at the output hook of IP do not see packet sockets"
)

// packet are sockets at the interface. All but one take CAP_NET_RAW.
func packet() []Attempt {
	const family = "packet sockets"
	nft := []Hole{{Level: Tag, User: Root, Ways: []bind.Way{bind.WayNft}, Why: packetWhy}}
	past := []Hole{{Level: Tag, User: Root, Ways: tagWays, Why: bypassWhy}}
	p := func(name, text string, holes []Hole, do func(s *stage) error) Attempt {
		return Attempt{Name: name, Family: family, Text: text, Holes: holes, do: do}
	}
	return []Attempt{
		p("packet-raw", "AF_PACKET, whole frames", nft, func(s *stage) error { return s.packets(unix.AF_PACKET, unix.SOCK_RAW, nil) }),
		p("packet-dgram", "AF_PACKET, without the frame's header", nft, func(s *stage) error { return s.packets(unix.AF_PACKET, unix.SOCK_DGRAM, nil) }),
		p("packet-old", "AF_INET, SOCK_PACKET", nft, func(s *stage) error { return s.packets(unix.AF_INET, unix.SOCK_PACKET, nil) }),
		p("packet-priority-class", "AF_PACKET and SO_PRIORITY: another branch's class", nft, func(s *stage) error {
			return s.packets(unix.AF_PACKET, unix.SOCK_RAW, priority(uint32(s.Other)))
		}),
		p("packet-priority-root", "AF_PACKET and SO_PRIORITY: the queue itself", nft, func(s *stage) error {
			return s.packets(unix.AF_PACKET, unix.SOCK_RAW, priority(uint32(s.Root)))
		}),
		p("packet-bypass", "PACKET_QDISC_BYPASS", past, func(s *stage) error {
			return s.packets(unix.AF_PACKET, unix.SOCK_RAW, option("PACKET_QDISC_BYPASS", unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1))
		}),
		p("packet-bypass-long", "PACKET_QDISC_BYPASS in a value of 8192 bytes", past, func(s *stage) error {
			return s.packets(unix.AF_PACKET, unix.SOCK_RAW, func(fd int) error {
				b := make([]byte, 8192)
				b[0] = 1
				return call("setsockopt PACKET_QDISC_BYPASS", unix.SetsockoptString(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, string(b)))
			})
		}),
		p("packet-ring", "PACKET_TX_RING", nft, func(s *stage) error { return s.ring(false) }),
		p("packet-ring-bypass", "PACKET_TX_RING and PACKET_QDISC_BYPASS", past, func(s *stage) error { return s.ring(true) }),
		p("packet-io-uring", "AF_PACKET made by io_uring", nft, ringPacket),
		p("packet-bypass-io-uring", "PACKET_QDISC_BYPASS by io_uring", past, ringBypass),
		p("xdp-socket", "AF_XDP, copy mode", past, xdpSocket),
		p("pppoe", "PPPoE, which takes no capability", []Hole{{Level: Tag, Ways: []bind.Way{bind.WayNft}, Why: packetWhy}}, pppoe),
	}
}

// pppoe sends as over a session of PPPoE that stands.
func pppoe(s *stage) error {
	fd, err := s.socket(unix.AF_PPPOX, unix.SOCK_STREAM, 0) // PX_PROTO_OE
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// struct sockaddr_pppox of linux/if_pppox.h, packed: family, protocol,
	// session, far end, interface
	b := binary.NativeEndian.AppendUint16(nil, unix.AF_PPPOX)
	b = append(b, 0, 0, 0, 0, 0, 7)
	b = append(append(b, s.FarMAC...), make([]byte, unix.IFNAMSIZ)...)
	copy(b[len(b)-unix.IFNAMSIZ:], s.Dev)
	if _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b))); e != 0 {
		return call("connect", e)
	}
	for range packets {
		if _, err := unix.Write(fd, payload); err != nil {
			return call("write", err)
		}
		s.Sent++
	}
	return nil
}

func (s *stage) packets(family, typ int, prepare func(int) error) error {
	return s.with(family, typ, 0, prepare, func(fd int) error { return s.frames(fd, family, typ) })
}

// frames sends through a packet socket.
func (s *stage) frames(fd, family, typ int) error {
	b := s.frame()
	if typ == unix.SOCK_DGRAM {
		b = b[14:]
	}
	if family == unix.AF_PACKET {
		to := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: s.Index, Halen: 6} // ETH_P_IP
		copy(to.Addr[:], s.FarMAC)
		return s.flood(to, b)(fd)
	}
	// struct sockaddr_pkt of linux/if_packet.h: family, name, protocol
	var to struct {
		family uint16
		device [14]byte
		proto  uint16
	}
	to.family, to.proto = unix.AF_INET, 0x0008
	copy(to.device[:], s.Dev)
	for range packets {
		_, _, e := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to))
		if e != 0 {
			return call("sendto", e)
		}
		s.Sent++
	}
	return nil
}

// ring sends from a ring in shared memory.
func (s *stage) ring(bypass bool) error {
	fd, err := s.socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if bypass {
		if err := option("PACKET_QDISC_BYPASS", unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)(fd); err != nil {
			return err
		}
	}
	if err := option("PACKET_VERSION", unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2)(fd); err != nil {
		return err
	}
	const size, block = 512, 4096
	n := (packets*size + block - 1) / block
	r := unix.TpacketReq{Block_size: block, Block_nr: uint32(n), Frame_size: size, Frame_nr: uint32(n * block / size)}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_TX_RING, &r); err != nil {
		return call("setsockopt PACKET_TX_RING", err)
	}
	m, err := unix.Mmap(fd, 0, n*block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return call("mmap", err)
	}
	defer func() { _ = unix.Munmap(m) }()
	to := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: s.Index, Halen: 6}
	copy(to.Addr[:], s.FarMAC)
	if err := unix.Bind(fd, to); err != nil {
		return call("bind", err)
	}
	b := s.frame()
	for i := range packets {
		slot := m[i*size:]
		h := (*unix.Tpacket2Hdr)(unsafe.Pointer(&slot[0]))
		// data starts where the header would end (tpacket_parse_header,
		// net/packet/af_packet.c, v6.12)
		copy(slot[unix.TPACKET_ALIGNMENT*((int(unsafe.Sizeof(*h))+unix.TPACKET_ALIGNMENT-1)/unix.TPACKET_ALIGNMENT):], b)
		h.Len = uint32(len(b))
		atomic.StoreUint32(&h.Status, unix.TP_STATUS_SEND_REQUEST)
	}
	sent, _, e := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), 0, 0, 0, 0, 0)
	if e != 0 {
		return call("sendto", e)
	}
	s.Sent += int(sent) / len(b)
	if s.Sent == 0 {
		return fmt.Errorf("the ring took %d bytes", sent)
	}
	return nil
}

// xdpSocket sends past everything.
func xdpSocket(s *stage) error {
	fd, err := s.socket(unix.AF_XDP, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const frames, size = 64, 4096
	umem, err := unix.Mmap(-1, 0, frames*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return call("mmap", err)
	}
	defer func() { _ = unix.Munmap(umem) }()
	set := func(name string, opt int, p unsafe.Pointer, n uintptr) error {
		_, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(opt), uintptr(p), n, 0)
		if e != 0 {
			return call("setsockopt "+name, e)
		}
		return nil
	}
	reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&umem[0]))), Len: frames * size, Size: size}
	// the form that all kernels know has neither flags nor what came after them
	if err := set("XDP_UMEM_REG", unix.XDP_UMEM_REG, unsafe.Pointer(&reg), 24); err != nil {
		return err
	}
	n := uint32(frames)
	for opt, name := range map[int]string{
		unix.XDP_UMEM_FILL_RING: "XDP_UMEM_FILL_RING", unix.XDP_UMEM_COMPLETION_RING: "XDP_UMEM_COMPLETION_RING", unix.XDP_TX_RING: "XDP_TX_RING",
	} {
		if err := set(name, opt, unsafe.Pointer(&n), 4); err != nil {
			return err
		}
	}
	var off unix.XDPMmapOffsets
	l := uint32(unsafe.Sizeof(off))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS, uintptr(unsafe.Pointer(&off)), uintptr(unsafe.Pointer(&l)), 0)
	if e != 0 {
		return call("getsockopt XDP_MMAP_OFFSETS", e)
	}
	tx, err := unix.Mmap(fd, unix.XDP_PGOFF_TX_RING, int(off.Tx.Desc)+frames*int(unsafe.Sizeof(unix.XDPDesc{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return call("mmap", err)
	}
	defer func() { _ = unix.Munmap(tx) }()
	if err := unix.Bind(fd, &unix.SockaddrXDP{Flags: unix.XDP_COPY, Ifindex: uint32(s.Index)}); err != nil {
		return call("bind", err)
	}
	b := s.frame()
	for i := range packets {
		copy(umem[i*size:], b)
		d := (*unix.XDPDesc)(unsafe.Pointer(&tx[int(off.Tx.Desc)+i*int(unsafe.Sizeof(unix.XDPDesc{}))]))
		*d = unix.XDPDesc{Addr: uint64(i * size), Len: uint32(len(b))}
	}
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&tx[off.Tx.Producer])), packets)
	consumer := (*uint32)(unsafe.Pointer(&tx[off.Tx.Consumer]))
	for range 1000 { // a call sends a batch (TX_BATCH_SIZE, net/xdp/xsk.c, v6.12)
		if atomic.LoadUint32(consumer) == packets {
			break
		}
		_, _, e := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		if e != 0 && e != unix.EAGAIN && e != unix.EBUSY && e != unix.ENOBUFS {
			return call("sendto", e)
		}
	}
	s.Sent += int(atomic.LoadUint32(consumer))
	return nil
}
