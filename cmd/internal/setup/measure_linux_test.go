package setup

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// short are times for what is not to be known exactly.
var short = times{send: time.Second, skip: time.Second, limit: 12 * time.Second}

// serving accepts connections at an address of the far end, and hands each to serve.
func serving(t *testing.T, pair *lab.Pair, serve func(net.Conn)) (at string) {
	t.Helper()
	var l net.Listener
	err := pair.Far.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(pair.Far4, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			serve(c)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

func drain(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// TestKernelAcknowledged: what counts is what the other end has taken, byte by byte, and not
// what waits to be sent.
func TestKernelAcknowledged(t *testing.T) {
	pair := tctest.New(t, lab.PairConfig{})
	const most = 64 << 20 // more than any buffer holds
	read := make(chan int64, 1)
	full := make(chan struct{})
	at := serving(t, pair, func(c net.Conn) {
		n, _ := io.CopyN(io.Discard, c, 100_000)
		read <- n
		<-full
	})
	var conn *net.TCPConn
	err := pair.Near.Do(func() error {
		c, err := net.Dial("tcp", at)
		conn, _ = c.(*net.TCPConn)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	defer close(full)
	if _, err := conn.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	if n := <-read; n != 100_000 {
		t.Fatalf("%d bytes were read", n)
	}
	// The last acknowledgement may be on its way; the one of the SYN is a byte.
	for deadline := time.Now().Add(10 * time.Second); ; {
		n, err := acknowledged(conn)
		if err != nil || n > 100_001 {
			t.Fatalf("%d, %v", n, err)
		}
		if n >= 100_000 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of 100000 were acknowledged", n)
		}
		time.Sleep(time.Millisecond)
	}
	// Nobody reads any more: the buffers fill, and what waits in the one here is not counted.
	chunk := make([]byte, 1<<20)
	for sent := uint64(100_000); ; {
		if sent > most {
			t.Fatalf("all of %d bytes went into buffers", sent)
		}
		if err := conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Write(chunk)
		sent += uint64(n)
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if n, err := acknowledged(conn); err != nil {
			t.Fatal(err)
		} else if n < sent {
			break
		}
	}
}

// near measures from the near end, where eth0 leads out.
func near(ctx context.Context, t *testing.T, pair *lab.Pair, host string, x times) (m *Measurement, err error) {
	t.Helper()
	_ = pair.Near.Do(func() error {
		m, err = measure(ctx, host, x)
		return nil
	})
	return m, err
}

func TestKernelMeasureTCP(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // without iperf3
	pair := tctest.New(t, lab.PairConfig{})
	at := serving(t, pair, drain)
	m, err := near(t.Context(), t, pair, at, short)
	if err != nil {
		t.Fatal(err)
	}
	if m.Host != at || m.By != "one TCP connection" || m.Interface != pair.Dev || m.Up == 0 || m.Down != 0 || m.Time != time.Second {
		t.Errorf("%+v", m)
	}
	s := &Survey{Uplinks: []Uplink{{Name: "eth1", IPv4: true}}}
	if text := s.Policy(Home, "", m); strings.Contains(text, "was measured") {
		t.Errorf("what was measured on %s stands at another interface:\n%s", m.Interface, text)
	}
	done := make(chan struct{})
	for _, x := range []struct {
		name  string
		serve func(net.Conn)
		want  string
	}{
		{"it hangs up", func(c net.Conn) { _, _ = io.CopyN(io.Discard, c, 1000) }, "the other end ended the connection before 2s were over: have something read all there"},
		{"it does not read", func(net.Conn) { <-done }, "the other end does not take what is sent: have something read all there"},
	} {
		m, err := near(t.Context(), t, pair, serving(t, pair, x.serve), short)
		if err == nil || !strings.Contains(err.Error(), x.want) || !strings.HasSuffix(err.Error(), "(the program iperf3 is not installed)") {
			t.Errorf("%s: %+v, %v", x.name, m, err)
		}
	}
	close(done)
	// Ctrl-C ends it, whatever it waits for.
	ctx, cancel := context.WithCancel(t.Context())
	at = serving(t, pair, func(c net.Conn) {
		_, _ = io.CopyN(io.Discard, c, 1)
		cancel()
		drain(c)
	})
	if m, err := near(ctx, t, pair, at, times{send: time.Hour, skip: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %+v, %v", m, err)
	}
}

// TestKernelMeasureIperf: both directions, and one connection where the host does not speak
// it.
func TestKernelMeasureIperf(t *testing.T) {
	program := tctest.RequireProgram(t, "iperf3")
	pair := tctest.New(t, lab.PairConfig{})
	cmd := exec.CommandContext(t.Context(), program, "-s", "-B", pair.Far4.String(), "--forceflush")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Far.Start(cmd); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	for said.Scan() && !strings.Contains(said.Text(), "listening") {
	}
	if said.Err() != nil {
		t.Fatal(said.Err())
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, out)
	}()
	t.Cleanup(func() {
		<-drained
		_ = cmd.Wait() // it is killed by now
	})
	m, err := near(t.Context(), t, pair, pair.Far4.String(), short)
	if err != nil {
		t.Fatal(err)
	}
	if m.Host != pair.Far4.String()+":5201" || m.By != "iperf3" || m.Interface != pair.Dev || m.Up == 0 || m.Down == 0 {
		t.Errorf("%+v", m)
	}
	x := short
	x.limit = time.Second // for an answer that does not come
	m, err = near(t.Context(), t, pair, serving(t, pair, drain), x)
	if err != nil || m.By != "one TCP connection" || m.Up == 0 || m.Down != 0 {
		t.Errorf("of who reads and says nothing: %+v, %v", m, err)
	}
}
