package main

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/tctest"
)

// listener hears what the kernel tells about traffic control in the near namespace,
// until the test ends.
func (n *network) listener() *netlink.Conn {
	n.Helper()
	c, err := n.Near.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: 1 << (unix.RTNLGRP_TC - 1)})
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { c.Close() })
	return c
}

// messages counts what the kernel tells a listener, by type of message: it tells each
// thing that is made, changed or deleted once.
func (n *network) messages() (count func() map[netlink.HeaderType]int) {
	n.Helper()
	c := n.listener()
	return func() map[netlink.HeaderType]int {
		n.Helper()
		seen := map[netlink.HeaderType]int{}
		for {
			if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
				n.Fatal(err)
			}
			m, err := c.Receive()
			if err != nil {
				if os.IsTimeout(err) || strings.Contains(err.Error(), "timeout") {
					return seen
				}
				n.Fatal(err)
			}
			for _, x := range m {
				seen[x.Header.Type]++
			}
		}
	}
}

// changeOne is a policy of many leaves, and the same with another rate of one.
func (n *network) changeOne(leaves int) (files [2]string) {
	n.Helper()
	text := many(leaves, "1mbit")
	other := strings.Replace(text, "[interface.eth0.b77]\nrate = \"1mbit\"", "[interface.eth0.b77]\nrate = \"2mbit\"", 1)
	rest := "[interface.eth0.rest]\nrate = \"1gbit\"\n"
	return [2]string{n.policy("one.toml", text+rest), n.policy("two.toml", other+rest)}
}

// TestKernelChangeOne holds that one number is one message to the kernel, and
// costs no packet.
func TestKernelChangeOne(t *testing.T) {
	n := newNetwork(t)
	files := n.changeOne(300)
	n.ok("apply", files[0])
	s := n.stream()
	count := n.messages()
	n.ok("apply", files[1])
	got := count()
	if lost := s.passed(); lost != 0 {
		t.Errorf("%d datagrams were lost", lost)
	}
	// The change, and the answer to the question whether it took, which the
	// kernel gives to everybody who listens.
	if len(got) != 1 || got[unix.RTM_NEWTCLASS] != 2 {
		t.Errorf("the kernel told, by type of message: %v", got)
	}
}

// built is the program as users have it: the test binary takes longer to start.
func (n *network) built() {
	n.Helper()
	n.bin = n.build("vifshape", ".")
}

// build builds a program and copies it: what the linker has just written lies in smaller
// pieces in the page cache, and takes half a millisecond more to start than what was
// installed.
func (n *network) build(name, from string) (file string) {
	n.Helper()
	file = filepath.Join(n.dir, name)
	linked := file + ".linked"
	if out, err := exec.Command(tctest.RequireProgram(n, "go"), "build", "-o", linked, from).CombinedOutput(); err != nil {
		n.Fatalf("go build: %v\n%s", err, out)
	}
	b, err := os.ReadFile(linked)
	if err == nil {
		err = os.WriteFile(file, b, 0o755)
	}
	if err != nil {
		n.Fatal(err)
	}
	return file
}

// BenchmarkChangeOne10000 is goal P7: one rate of a policy of 10,000 branches,
// from the start of the program to its end, with datagrams under way.
func BenchmarkChangeOne10000(b *testing.B) {
	n := newNetwork(b)
	n.built()
	files := n.changeOne(10000)
	if r := n.run("apply", files[0]); r.code != 0 {
		b.Fatal(r)
	}
	s := n.stream()
	count := n.messages()
	runs := 0
	var least, cpu time.Duration
	for b.Loop() {
		runs++
		start := time.Now()
		r := n.start(n.command("apply", files[runs%2]))
		if out := r.wait(); out.code != 0 {
			b.Fatal(out)
		}
		if took := time.Since(start); least == 0 || took < least {
			least = took
		}
		cpu += r.ProcessState.UserTime() + r.ProcessState.SystemTime()
	}
	b.ReportMetric(ms(least), "ms-best/op")
	b.ReportMetric(ms(cpu)/float64(runs), "ms-cpu/op")
	b.ReportMetric(float64(count()[unix.RTM_NEWTCLASS])/float64(runs)-1, "class-messages/op") // one is the answer when it is read back
	b.ReportMetric(float64(s.passed()), "lost")
}

// BenchmarkApplyMatches is a policy with 10,000 prefixes and 1,000 ranges of ports, from the
// start of the program to its end: applied where nothing is, with another prefix, and as it is.
func BenchmarkApplyMatches(b *testing.B) {
	n := newNetwork(b)
	n.built()
	policy := func(name, prefix string) string {
		var text strings.Builder
		text.WriteString("version = 1\n[interface.eth0]\nrate = \"1gbit\"\n[interface.eth0.prefixes]\nmatch = [{ to = [")
		for i := range 9_999 { // of each length from 16 to 32 some
			fmt.Fprintf(&text, "\"%v\", ", netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(1 + i/100), byte(i % 100 * 2)}), 16+i%17))
		}
		fmt.Fprintf(&text, "%q] }]\n[interface.eth0.ports]\nmatch = [", prefix)
		for i := range 1000 {
			fmt.Fprintf(&text, "{ proto = \"udp\", dport = \"%d-%d\" }, ", 10*(i+1), 10*(i+1)+i%5)
		}
		return n.policy(name, text.String()+"]\n")
	}
	files := [2]string{policy("one.toml", "203.0.113.0/24"), policy("two.toml", "203.0.114.0/24")}
	measure := func(b *testing.B, before func(), file func(run int) string) {
		var least, cpu time.Duration
		var memory int64
		runs := 0
		for b.Loop() {
			before()
			start := time.Now()
			r := n.start(n.command("apply", file(runs)))
			if out := r.wait(); out.code != 0 {
				b.Fatal(out)
			}
			if took := time.Since(start); least == 0 || took < least {
				least = took
			}
			runs++
			cpu += r.ProcessState.UserTime() + r.ProcessState.SystemTime()
			memory = max(memory, r.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)
		}
		b.ReportMetric(ms(least), "ms-best/op")
		b.ReportMetric(ms(cpu)/float64(runs), "ms-cpu/op")
		b.ReportMetric(float64(memory)/1024, "MiB-most")
	}
	b.Run("first", func(b *testing.B) {
		measure(b, func() { n.ok("clear") }, func(int) string { return files[0] })
	})
	b.Run("changed", func(b *testing.B) {
		measure(b, func() {}, func(run int) string { return files[(run+1)%2] })
	})
	b.Run("none", func(b *testing.B) {
		n.ok("apply", files[0])
		measure(b, func() {}, func(int) string { return files[0] })
	})
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// BenchmarkRun is goal P9: run at both levels over a plain start of the same
// program. Level tag is the cgroup alone. Moved is a shell that does no more than move
// itself: where nobody has moved a process for a while, the kernel takes a grace period
// of RCU for it (percpu_down_write of cgroup_threadgroup_rwsem, kernel/cgroup/cgroup.c,
// v6.12).
func BenchmarkRun(b *testing.B) {
	n := newLocked(b)
	n.built()
	program := tctest.RequireProgram(b, "true")
	starts := map[string]func() *exec.Cmd{"plain": func() *exec.Cmd { return exec.CommandContext(b.Context(), program) }}
	for _, level := range []string{"tag", "lock"} {
		starts[level] = func() *exec.Cmd { return n.command("run", "--level", level, "eth0/web/api", "--", program) }
	}
	own := n.ok("run", "--level", "tag", "eth0/web/api", "--", tctest.RequireProgram(b, "cat"), "/proc/self/cgroup")
	for line := range strings.Lines(own) {
		if home, ok := strings.CutPrefix(line, "0::"); ok && strings.Contains(home, "/vifshape/") {
			move := "echo $$ > " + tctest.Cgroup2Mount(b) + strings.TrimSpace(home) + "/cgroup.procs; exec " + program
			starts["moved"] = func() *exec.Cmd { return exec.CommandContext(b.Context(), "/bin/sh", "-c", move) }
		}
	}
	n.compare(b, "plain", starts)
}

// BenchmarkStart is what a start of the program costs, over one of a Go program that
// prints a line.
func BenchmarkStart(b *testing.B) {
	n := newNetwork(b)
	n.built()
	source := filepath.Join(n.dir, "hello.go")
	if err := os.WriteFile(source, []byte("package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"hello\") }\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	hello := n.build("hello", source)
	n.compare(b, "hello", map[string]func() *exec.Cmd{
		"hello":   func() *exec.Cmd { return exec.CommandContext(b.Context(), hello) },
		"version": func() *exec.Cmd { return n.command("version") },
		"show":    func() *exec.Cmd { return n.command("show") },
	})
}

// compare starts programs side by side, in another order each time, and reports the
// median of each, over that of one of them too.
func (n *network) compare(b *testing.B, base string, starts map[string]func() *exec.Cmd) {
	names := slices.Sorted(maps.Keys(starts))
	took := map[string][]time.Duration{}
	for round := 0; b.Loop(); round++ {
		for i := range names {
			name := names[(round+i)%len(names)]
			c := starts[name]()
			from := time.Now()
			if r := n.start(c).wait(); r.code != 0 {
				b.Fatal(r)
			}
			took[name] = append(took[name], time.Since(from))
		}
	}
	median := func(name string) float64 {
		slices.Sort(took[name])
		return ms(took[name][len(took[name])/2])
	}
	for _, name := range names {
		b.ReportMetric(median(name), "ms-"+name)
		if name != base {
			b.ReportMetric(median(name)/median(base), "x-"+base+"-"+name)
		}
	}
}
