package explain

import (
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/hierarchy"
)

// TestJudge holds the verdicts of figures, those at both sides of what decides among them.
// What real programs measure TestVirtualExplain of cmd/vifshape looks at.
func TestJudge(t *testing.T) {
	m := hierarchy.Mbit
	level := func(path string, gets, ceil, rate hierarchy.Bandwidth, prio uint8, waiting float64) Level {
		return Level{Path: hierarchy.Path(path), Gets: gets, Ceil: ceil, Rate: rate, Prio: prio, Waiting: waiting, Leaf: path != "eth0" && path != "eth0/office", Packets: uint64(gets / 10_000)}
	}
	port := func(levels ...Level) Port { return levels }
	tcp := func(set func(*Connection)) []Connection {
		c := Connection{PID: 7, Name: "dd", Remote: "192.0.2.7:443", Branch: "eth0/a", Sends: 3 * m, Busy: 1, RTT: 50 * time.Millisecond, LeastRTT: 20 * time.Millisecond}
		set(&c)
		return []Connection{c}
	}
	idle := port(level("eth0", 3*m, 20*m, 20*m, 0, 0), level("eth0/a", 3*m, 8*m, 2*m, 3, 0.1))
	for _, x := range []struct {
		name  string
		e     Evidence
		cause Cause
		words string
	}{
		{"no tree", Evidence{Unshaped: "eth0 has lost its root qdisc"}, Unshaped, "eth0 has lost its root qdisc"},
		{"at its ceiling", Evidence{Sends: port(level("eth0", 8*m, 20*m, 20*m, 0, 1), level("eth0/a", 8*m, 8*m, 2*m, 3, 1))}, AtCeiling, "it sends 8mbit of 8mbit"},
		{"what it receives is", Evidence{Sends: idle, Receives: port(level("eth0", 8*m, 20*m, 20*m, 0, 1), level("eth0/a", 8*m, 8*m, 2*m, 3, 1))}, AtCeiling, "it receives 8mbit of 8mbit"},
		{"an inner branch is", Evidence{Path: "eth0/office", Sends: port(level("eth0", 8*m, 20*m, 20*m, 0, 1), level("eth0/office", 8*m, 8*m, 2*m, 0, 1), level("eth0/office/x", 2*m, 8*m, m, 3, 1), level("eth0/office/y", 6*m, 8*m, m, 3, 1))}, AtCeiling, "most of it goes to eth0/office/y (6mbit)"},
		{"the root is full", Evidence{Sends: port(level("eth0", 20*m, 20*m, 20*m, 0, 1), level("eth0/a", 6*m, 20*m, 2*m, 3, 1), level("eth0/b", 14*m, 20*m, 2*m, 3, 1))}, ParentFull, "most of it goes to eth0/b (14mbit)"},
		{"others go first", Evidence{Sends: port(level("eth0", 20*m, 20*m, 20*m, 0, 1), level("eth0/a", 2*m, 20*m, 2*m, 3, 1), level("eth0/b", 18*m, 20*m, 2*m, 1, 1))}, Starved, "eth0/b (prio 1 before 3) takes 18mbit"},
		{"others are guaranteed what they take", Evidence{Sends: port(level("eth0", 20*m, 20*m, 20*m, 0, 1), level("eth0/a", 2*m, 20*m, 2*m, 3, 1), level("eth0/b", 18*m, 20*m, 18*m, 1, 1))}, ParentFull, "eth0/b"},
		{"the line is slower", Evidence{Sends: port(level("eth0", 12*m, 20*m, 20*m, 0, 1), level("eth0/a", 12*m, 20*m, 2*m, 3, 1))}, LineSlower, "eth0 takes no more: 12mbit"},
		{"it may be", Evidence{Sends: port(level("eth0", 18*m, 20*m, 20*m, 0, 1), level("eth0/a", 12*m, 20*m, 2*m, 3, 1))}, NotSure, "18mbit of 20mbit"},
		{"its queue holds packets back", Evidence{Sends: Port{level("eth0", 2*m, 20*m, 20*m, 0, 0), {Path: "eth0/a", Gets: 2 * m, Ceil: 10 * m, Leaf: true, Waiting: 1, Holds: "tbf", Packets: 300, Drops: 30}}}, OwnQueue, "2mbit of 10mbit, and packets wait in its own queue, which holds them back by itself: it is tbf"},
		{"that of one in it does", Evidence{Path: "eth0", Sends: Port{level("eth0", 2*m, 20*m, 20*m, 0, 0), {Path: "eth0/a", Gets: 2 * m, Ceil: 10 * m, Leaf: true, Waiting: 1, Holds: "tbf"}}}, OwnQueue, "eth0/a sends 2mbit of 10mbit"},
		{"its queue loses packets", Evidence{Sends: Port{level("eth0", 3*m, 20*m, 20*m, 0, 0), {Path: "eth0/a", Gets: 3 * m, Ceil: 10 * m, Leaf: true, Holds: "netem", Packets: 300, Drops: 30}}}, Program, "3mbit"},
		{"drops without a queue", Evidence{Sends: Port{level("eth0", 3*m, 20*m, 20*m, 0, 0), {Path: "eth0/a", Gets: 3 * m, Ceil: 8 * m, Leaf: true, Packets: 300, Drops: 30}}}, QueueDrops, "30 of 330 packets"},
		{"a drop in a million is none", Evidence{Sends: Port{level("eth0", 3*m, 20*m, 20*m, 0, 0), {Path: "eth0/a", Gets: 3 * m, Ceil: 8 * m, Leaf: true, Packets: 1000000, Drops: 1}}}, Program, "3mbit"},
		{"nothing", Evidence{Sends: port(level("eth0", 3*m, 20*m, 20*m, 0, 0), level("eth0/a", 0, 8*m, 2*m, 3, 0))}, Nothing, "eth0/a"},
		{"who cannot send waits for nothing", Evidence{Who: "process 7", Mute: "process 7 has no socket", Sends: port(level("eth0", 8*m, 20*m, 20*m, 0, 1), level("eth0/a", 8*m, 8*m, 2*m, 3, 1))}, Nothing, "process 7 has no socket"},
		{"its sockets are in another one", Evidence{Elsewhere: []string{"sockets of dd[7] are carried by eth0/b"}, Sends: port(level("eth0", 3*m, 20*m, 20*m, 0, 0), level("eth0/a", 0, 8*m, 2*m, 3, 0))}, OtherBranch, "dd[7]"},
		{"those who were asked about are", Evidence{Who: "process 7", Elsewhere: []string{"sockets of dd[7] are carried by eth0/b"}, Sends: idle}, OtherBranch, "dd[7]"},
		{"some are", Evidence{Elsewhere: []string{"sockets of sh[9] are carried by eth0/b"}, Sends: idle}, Program, "3mbit"},
		{"another interface", Evidence{Sends: port(level("eth0", 0, 20*m, 20*m, 0, 0), level("eth0/a", 0, 8*m, 2*m, 3, 0)), Connections: tcp(func(*Connection) {})}, OtherWay, "3mbit is acknowledged"},
		{"another interface, by its route", Evidence{Sends: port(level("eth0", 0, 20*m, 20*m, 0, 0), level("eth0/a", 0, 8*m, 2*m, 3, 0)), Connections: tcp(func(c *Connection) { c.LeavesBy = "eth1" })}, OtherWay, "dd[7] to 192.0.2.7:443 leaves by eth1"},
		{"a connection that stays on the machine is not the branch's", Evidence{Sends: idle, Connections: tcp(func(c *Connection) { c.LeavesBy, c.Sends, c.WindowLimited = "lo", 900*m, 0.9 })}, Program, "no more than 3mbit is sent"},
		{"the window", Evidence{Sends: idle, Connections: tcp(func(c *Connection) { c.WindowLimited = 0.9 })}, Window, "dd[7] to 192.0.2.7:443"},
		{"the program", Evidence{Sends: idle, Connections: tcp(func(c *Connection) { c.Busy = 0.1 })}, Program, "has no more"},
		{"one of many", Evidence{Sends: idle, Connections: append(tcp(func(c *Connection) { c.Busy, c.Sends = 0.1, 400 }), tcp(func(c *Connection) { c.Busy, c.Sends = 0, 0 })...)}, Program, "sends 400bit to 192.0.2.7:443 and has no more; it is the busiest of 2 connections, and eth0/a sends 3mbit"},
		{"the program, on a long path", Evidence{Sends: idle, Connections: tcp(func(c *Connection) { c.AppLimited, c.UnderWay = 1, 0.3 })}, Program, "has no more"},
		{"the buffer", Evidence{Sends: idle, Connections: tcp(func(c *Connection) { c.AppLimited, c.UnderWay, c.BufferFull = 1, 0.3, 1 })}, SendBuffer, "30% of the congestion window"},
		{"the path loses", Evidence{Sends: idle, Connections: tcp(func(c *Connection) { c.Unsent, c.UnderWay, c.Resent = 1, 0.9, 0.04 })}, PathLoses, "4% is sent again"},
		{"the path is narrow", Evidence{Sends: idle, Connections: tcp(func(c *Connection) { c.Unsent, c.UnderWay = 1, 0.9 })}, Path, "50ms (at best 20ms)"},
		{"marks", Evidence{Sends: idle, Connections: tcp(func(c *Connection) { c.Unsent, c.UnderWay, c.Marked = 1, 0.9, 0.03 })}, Marks, "3%"},
		{"nothing that one knows", Evidence{Sends: idle, Connections: tcp(func(c *Connection) { c.UnderWay = 0.4 })}, NotSure, "3mbit of 8mbit"},
	} {
		t.Run(x.name, func(t *testing.T) {
			if x.e.Path == "" {
				x.e.Path = "eth0/a"
			}
			x.e.Samples = Samples
			if v := x.e.Judge(); v.Cause != x.cause || !strings.Contains(v.Sentence, x.words) {
				t.Errorf("%q with %q, not %q with %q", v.Cause, v.Sentence, x.cause, x.words)
			}
		})
	}
}

// TestJudgeEvidence: each figure that a verdict may go by is said.
func TestJudgeEvidence(t *testing.T) {
	e := Evidence{Path: "eth0/a", Samples: Samples, By: "process 7 is in eth0/a by user:alice", Unseen: "that takes root", Elsewhere: []string{"sockets of sh[9] are carried by eth0/b"},
		Sends: Port{
			{Path: "eth0", Rate: 20 * hierarchy.Mbit, Ceil: 20 * hierarchy.Mbit, Gets: 8 * hierarchy.Mbit, Waiting: 1, Backlog: 10000},
			{Path: "eth0/a", Rate: 2 * hierarchy.Mbit, Ceil: 8 * hierarchy.Mbit, Gets: 8 * hierarchy.Mbit, Leaf: true, Prio: 3, Packets: 700, Drops: 2, Waiting: 1, Backlog: 10000},
		},
		Connections: make([]Connection, mostConnections+2),
	}
	for i := range e.Connections {
		e.Connections[i] = Connection{PID: 7, Name: "dd", Remote: "192.0.2.7:443", Sends: hierarchy.Mbit, Busy: 0.5, WindowLimited: 0.25, BufferFull: 0.75, AppLimited: 0.1, Unsent: 0.2, UnderWay: 0.3, Resent: 0.04, Marked: 0.06, RTT: 50 * time.Millisecond, LeastRTT: 20 * time.Microsecond}
	}
	one := "dd[7] to 192.0.2.7:443: 1mbit acknowledged, busy 50% (receiver's window 25%, send buffer 75%), program had no more in 10% and bytes waited in 20% of samples, 30% of the congestion window under way, 4% sent again, 6% marked, round trip 50ms (least 20µs)"
	want := []string{
		"process 7 is in eth0/a by user:alice",
		"eth0/a sends 8mbit of 8mbit (guaranteed 2mbit, prio 3); packets waited in 100% of 20 samples, 10.0kB on average (10ms); 2 packets were dropped",
		"eth0 sends 8mbit of 20mbit (guaranteed 20mbit); packets waited in 100% of 20 samples, 10.0kB on average (10ms)",
		one, one, one, one, one, "and 2 more connections",
		"sockets of sh[9] are carried by eth0/b",
		"connections were not looked at: that takes root",
	}
	if got := strings.Join(e.Judge().Evidence, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// TestAsleep: whoever has idle connections alone waits for nothing.
func TestAsleep(t *testing.T) {
	idle := watched{seen: 2, first: socket.TCP{BytesAcked: 1, BytesReceived: 2}, last: socket.TCP{BytesAcked: 1, BytesReceived: 2}}
	receives, waits, begun := idle, idle, idle
	receives.last.BytesReceived, waits.last.Unsent, begun.seen = 3, 1, 1
	for _, x := range []struct {
		name  string
		holds []uint64
		conns map[uint64]*watched
		want  bool
	}{
		{"nothing", nil, nil, false},
		{"an idle one", []uint64{1}, map[uint64]*watched{1: &idle}, true},
		{"a datagram socket, too", []uint64{1, 2}, map[uint64]*watched{1: &idle}, false},
		{"one that receives", []uint64{1, 2}, map[uint64]*watched{1: &idle, 2: &receives}, false},
		{"one that waits", []uint64{1}, map[uint64]*watched{1: &waits}, false},
		{"one that has begun", []uint64{1}, map[uint64]*watched{1: &begun}, false},
	} {
		l := look{holders: map[uint64]holder{}, conns: x.conns}
		for _, inode := range x.holds {
			l.holders[inode] = holder{}
		}
		if got := l.asleep(); got != x.want {
			t.Errorf("%s: %v", x.name, got)
		}
	}
}
