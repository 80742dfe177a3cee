package socket

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Of are the inodes of a process' sockets, of any kind and network namespace, by their
// descriptors. The number of these is what it costs, some microseconds for each.
func Of(pid int) (map[int]uint64, error) {
	dir, err := os.Open(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	all := map[int]uint64{}
	at, buf := int(dir.Fd()), make([]byte, 64)
	for _, name := range names {
		n, err := unix.Readlinkat(at, name, buf)
		if err != nil {
			continue // closed meanwhile
		}
		inode, ok := socketLink(string(buf[:n]))
		fd, err := strconv.Atoi(name)
		if ok && err == nil {
			all[fd] = inode
		}
	}
	return all, nil
}

// Staying are the inodes of sockets in the network namespace of a process that send to nobody
// by an interface: those of unix, and of netlink (unix_seq_show, net/unix/af_unix.c, and
// netlink_native_seq_show, net/netlink/af_netlink.c, v6.12).
func Staying(pid int) map[uint64]bool {
	all := map[uint64]bool{}
	for table, column := range map[string]int{"unix": 6, "netlink": 9} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			continue // the kernel has none, or it has ended
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > column {
				if inode, err := strconv.ParseUint(f[column], 10, 64); err == nil && inode != 0 {
					all[inode] = true
				}
			}
		}
	}
	return all
}

// socketLink is the inode of the socket that a descriptor in /proc leads to.
func socketLink(shown string) (inode uint64, ok bool) {
	n, ok := strings.CutPrefix(shown, "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(n, "]"), 10, 64)
	return inode, err == nil
}

// Socket is an open socket of a process.
type Socket struct {
	PID      int
	Protocol string // tcp, udp, raw or packet
	// Local and Remote are its addresses. Remote is the zero value where it has
	// none, and both are for a packet socket.
	Local, Remote netip.AddrPort
	Listening     bool  // connections that are accepted from it follow
	Shared        []int // processes outside, see [Describe], that have it, too
}

// Held is a socket and a process that has it.
type Held struct {
	Inode uint64
	PID   int
}

// Describe finds sockets in the kernel's tables, and processes but those in here that share them. What
// was closed meanwhile is left out, and so is what has no port yet.
func Describe(ctx context.Context, found map[Held]bool, here map[int]bool) ([]Socket, error) {
	if len(found) == 0 {
		return nil, nil
	}
	owner := map[uint64]int{}
	for f := range found {
		if pid, ok := owner[f.Inode]; !ok || f.PID < pid {
			owner[f.Inode] = f.PID
		}
	}
	known := map[uint64]Socket{}
	seen := map[string]bool{}
	for _, pid := range owner {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil || seen[ns] {
			continue // it has ended
		}
		seen[ns] = true
		for inode, s := range openSockets(pid) {
			if owner[inode] != 0 {
				s.PID = owner[inode]
				known[inode] = s
			}
		}
	}
	shared, err := sharers(ctx, known, here)
	if err != nil {
		return nil, err
	}
	var all []Socket
	for inode, s := range known {
		s.Shared = shared[inode]
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Socket) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Protocol, b.Protocol), a.Local.Compare(b.Local), a.Remote.Compare(b.Remote))
	})
	return all, nil
}

// openSockets goes through the kernel's tables of a process' network namespace.
func openSockets(pid int) iter.Seq2[uint64, Socket] {
	return func(yield func(uint64, Socket) bool) {
		for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
			if err != nil {
				continue // no IPv6, no packet sockets, or it has ended
			}
			for line := range strings.Lines(string(b)) {
				if s, inode, ok := parseSocket(table, line); ok && !yield(inode, s) {
					return
				}
			}
		}
	}
}

// Name is what a socket of a process is called in an error.
func Name(inode uint64, pid int) string {
	if inode == 0 {
		return "a connection that waits to be accepted"
	}
	for i, s := range openSockets(pid) {
		if i != inode {
			continue
		}
		text := "its " + s.Protocol + " socket"
		if s.Local.IsValid() {
			text += " " + s.Local.String()
		}
		if s.Remote.IsValid() {
			text += " to " + s.Remote.String()
		}
		return text
	}
	return fmt.Sprintf("its socket %d", inode) // which has no port
}

// sharers finds the processes not in here that have one of the sockets.
func sharers(ctx context.Context, known map[uint64]Socket, here map[int]bool) (map[uint64][]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	shared := map[uint64][]int{}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		pid, err := strconv.Atoi(e.Name())
		if err != nil || here[pid] {
			continue
		}
		fds, _ := Of(pid)
		for _, inode := range fds {
			if _, ok := known[inode]; ok && !slices.Contains(shared[inode], pid) {
				shared[inode] = append(shared[inode], pid)
			}
		}
	}
	return shared, nil
}

// parseSocket reads a line of one of the tables in /proc/PID/net (tcp4_seq_show and
// packet_seq_show, net/ipv4/tcp_ipv4.c and net/packet/af_packet.c, v6.12).
func parseSocket(table, line string) (s Socket, inode uint64, ok bool) {
	f := strings.Fields(line)
	if table == "packet" {
		if len(f) < 9 {
			return s, 0, false
		}
		inode, err := strconv.ParseUint(f[8], 10, 64)
		return Socket{Protocol: table}, inode, err == nil
	}
	if len(f) < 10 {
		return s, 0, false
	}
	inode, err := strconv.ParseUint(f[9], 10, 64)
	local, okLocal := parseAddr(f[1])
	remote, okRemote := parseAddr(f[2])
	if err != nil || !okLocal || !okRemote {
		return s, 0, false
	}
	const listen = "0A" // TCP_LISTEN
	s = Socket{Protocol: strings.TrimSuffix(table, "6"), Local: local, Listening: strings.HasPrefix(table, "tcp") && f[3] == listen}
	if remote.Port() != 0 || !remote.Addr().IsUnspecified() {
		s.Remote = remote
	}
	return s, inode, true
}

// parseAddr reads "0100007F:0016": the words of the address as they are in memory.
func parseAddr(text string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	p, err2 := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || err2 != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	a, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), true
}
