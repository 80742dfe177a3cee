//go:build linux

package setup

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// times are how long things take.
type times struct {
	send, skip time.Duration // of each direction: what counts, and what does not before it, in which TCP finds its speed; whole seconds
	limit      time.Duration // when a test of iperf3 is given up: a host that speaks something else on its port lets it wait for ever
}

const (
	connectLimit = 5 * time.Second
	measurePort  = "5201" // iperf3's
	reader       = "have something read all there, as iperf3 -s or nc -l PORT >/dev/null do"
	// measured is what of a measured bandwidth is written, in percent.
	measured = 95
)

// Measurement is how much got through between this machine and another.
type Measurement struct {
	Host      string // host and port
	By        string // "iperf3", or "one TCP connection"
	Time      time.Duration
	Interface string              // by which that host is reached
	Up, Down  hierarchy.Bandwidth // of what TCP carries, without headers; Down 0: not measured
}

// less is what is written of a measured bandwidth: a part of it, three digits of that.
func less(b hierarchy.Bandwidth) hierarchy.Bandwidth {
	b = b / 100 * measured
	unit := hierarchy.Bandwidth(1)
	for b/unit >= 1000 {
		unit *= 10
	}
	return b / unit * unit
}

// Measure sends to a host, "HOST" or "HOST:PORT", for five seconds as fast as that takes it,
// and where the host speaks iperf3, and this machine has the program, has it send for as
// long. Without either something must read at that port all that is sent, and what counts is
// what it acknowledged. It ends with ctx. A host that is reached by none of the uplinks is an
// error: what gets through to it says nothing of them.
func (s *Survey) Measure(ctx context.Context, host string) (*Measurement, error) {
	m, err := measure(ctx, host, times{send: 5 * time.Second, skip: time.Second, limit: 12 * time.Second})
	if err == nil {
		err = s.accept(m)
	}
	return m, err
}

// slowest is the least of a line that a policy can be written for: its branches' parts of less
// are too little for a packet now and then.
const slowest = 64 * hierarchy.Kbit

// accept is an error where a measurement says nothing of an uplink.
func (s *Survey) accept(m *Measurement) error {
	switch {
	case !slices.ContainsFunc(s.Uplinks, func(u Uplink) bool { return u.Name == m.Interface }):
		return fmt.Errorf("%s is reached by %s, which no default route leads to: measure to a host that is reached by %s", m.Host, m.Interface, s.Uplinks[0].Name)
	case m.Up < slowest:
		return fmt.Errorf("no more than %v got through to %s: that is no line to divide", m.Up, m.Host)
	}
	return nil
}

func measure(ctx context.Context, host string, t times) (*Measurement, error) {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = host, measurePort
	}
	at := net.JoinHostPort(name, port)
	m, err := byIperf(ctx, name, port, t)
	if err != nil && ctx.Err() == nil {
		why := err
		if m, err = byTCP(ctx, at, t); err != nil {
			err = fmt.Errorf("measure to %s: %w (%v)", at, err, why)
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	m.Host, m.Time = at, t.send
	return m, nil
}

// errNoIperf says that this machine has not the program.
var errNoIperf = errors.New("the program iperf3 is not installed")

// byIperf measures both directions by the program iperf3.
func byIperf(ctx context.Context, name, port string, t times) (*Measurement, error) {
	program, err := exec.LookPath("iperf3")
	if err != nil {
		return nil, errNoIperf
	}
	m := &Measurement{By: "iperf3"}
	for _, d := range []struct {
		to    *hierarchy.Bandwidth
		flags []string
	}{{&m.Up, nil}, {&m.Down, []string{"-R"}}} {
		args := append([]string{"-c", name, "-p", port, "-J", "-t", fmt.Sprint(int(t.send.Seconds())), "-O", fmt.Sprint(int(t.skip.Seconds()))}, d.flags...)
		local := ""
		if *d.to, local, err = iperf(ctx, program, args, t.limit); err != nil {
			return nil, err
		}
		if m.Interface, err = interfaceOf(local); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// iperf runs one test and reads what came of it. A server takes one at a time, and is not
// done with the last when its client is: who is told that it is busy asks again.
func iperf(ctx context.Context, program string, args []string, limit time.Duration) (hierarchy.Bandwidth, string, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		b, local, err := iperfOnce(limited, program, args)
		busy := err != nil && strings.Contains(err.Error(), "the server is busy")
		if busy {
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-limited.Done():
			}
		}
		if limited.Err() != nil && !busy {
			return 0, "", fmt.Errorf("iperf3 had no result after %v", limit)
		}
		return b, local, err
	}
}

func iperfOnce(ctx context.Context, program string, args []string) (hierarchy.Bandwidth, string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &out
	failed := cmd.Run()
	var r struct {
		Error string `json:"error"`
		Start struct {
			Connected []struct {
				Local string `json:"local_host"`
			} `json:"connected"`
		} `json:"start"`
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	err := json.Unmarshal(out.Bytes(), &r)
	switch {
	case r.Error != "":
		return 0, "", fmt.Errorf("iperf3: %s", r.Error)
	case failed != nil:
		return 0, "", fmt.Errorf("iperf3: %w", failed)
	case err != nil:
		return 0, "", fmt.Errorf("iperf3: its output cannot be read: %w", err)
	case len(r.Start.Connected) == 0 || r.End.Received.Bits < 1 || r.End.Received.Bits > float64(hierarchy.MaxBandwidth):
		return 0, "", errors.New("iperf3: its output has no result")
	}
	return hierarchy.Bandwidth(r.End.Received.Bits), r.Start.Connected[0].Local, nil
}

// byTCP sends by one connection, and counts what the other end has acknowledged.
func byTCP(ctx context.Context, at string, t times) (m *Measurement, err error) {
	d := net.Dialer{Timeout: connectLimit}
	conn, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// whatever waits in a call then comes back
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("%T is no connection of TCP", conn)
	}
	end := time.Now().Add(t.skip + t.send)
	if err := conn.SetWriteDeadline(end); err != nil {
		return nil, err
	}
	acked := make(chan uint64, 1)
	var began time.Time
	skip := time.AfterFunc(t.skip, func() {
		n, err := acknowledged(tcp)
		if err == nil {
			began = time.Now()
			acked <- n
		}
		close(acked)
	})
	defer skip.Stop()
	buf := make([]byte, 256<<10)
	for err == nil {
		_, err = conn.Write(buf)
	}
	var late net.Error
	if !errors.As(err, &late) || !late.Timeout() {
		return nil, fmt.Errorf("the other end ended the connection before %v were over: %s: %w", t.skip+t.send, reader, err)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	first, ok := <-acked
	last, err := acknowledged(tcp)
	took := time.Since(began)
	if err != nil || !ok {
		return nil, cmp.Or(err, errors.New("the kernel does not say what was acknowledged"))
	}
	if last <= first {
		return nil, errors.New("the other end does not take what is sent: " + reader)
	}
	m = &Measurement{By: "one TCP connection", Up: hierarchy.Bandwidth(float64(last-first) * 8 / took.Seconds())}
	m.Interface, err = interfaceOf(conn.LocalAddr().(*net.TCPAddr).IP.String())
	return m, err
}

// acknowledged is how many bytes the other end has taken (tcpi_bytes_acked, RFC 4898).
func acknowledged(c *net.TCPConn) (n uint64, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); failed == nil {
			n = info.Bytes_acked
		}
	})
	return n, errors.Join(err, failed)
}

// interfaceOf is the interface that has an address of this machine.
func interfaceOf(local string) (string, error) {
	want, err := netip.ParseAddr(local)
	if err != nil {
		return "", err
	}
	all, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	for _, x := range all {
		addrs, err := x.Addrs()
		if err != nil {
			return "", err
		}
		if slices.ContainsFunc(addrs, func(a net.Addr) bool {
			n, _ := a.(*net.IPNet)
			if n == nil {
				return false
			}
			ip, _ := netip.AddrFromSlice(n.IP)
			return ip.Unmap() == want.Unmap().WithZone("")
		}) {
			return x.Name, nil
		}
	}
	return "", fmt.Errorf("no interface has the address %s", local)
}
