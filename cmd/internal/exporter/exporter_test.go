package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
)

// samples are the lines of a page without its comments, and without families named.
func samples(page string, without ...string) (all []string) {
	for line := range strings.Lines(page) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") && !among(line, without) {
			all = append(all, line)
		}
	}
	return all
}

func among(line string, families []string) bool {
	for _, f := range families {
		if strings.HasPrefix(line, f) {
			return true
		}
	}
	return false
}

func TestPage(t *testing.T) {
	own := []string{"vifshape_build_info", "vifshape_scrape_duration_seconds"}
	class := func(id, parent uint16, p hierarchy.Path) hierarchy.Class {
		return hierarchy.Class{ID: hierarchy.ID(id), Parent: hierarchy.ID(parent), Path: p, Rate: 8_000_000, Ceil: 20}
	}
	inner := observe.Figure{Class: class(1, 0, "eth0"), Counters: observe.Counters{Bytes: 1 << 63, Packets: 3, Overlimit: 2}, Lent: 4, Borrowed: 5}
	leaf := observe.Figure{
		Class: class(2, 1, "eth0/rest"), Above: "eth0", Direction: hierarchy.Receive,
		Counters: observe.Counters{Bytes: 7, Packets: 1, Drops: 1, Backlog: 90, Queue: 1},
		Queue:    &tc.LeafStats{Kind: "fq_codel", Counters: tc.Counters{Drops: 6}},
	}
	for _, tt := range []struct {
		name string
		look look
		want []string
	}{
		{"nothing is shaped", look{}, []string{"vifshape_agent_running 0"}},
		{"no branches", look{interfaces: []*observe.Figures{{Interface: "wlan0", Err: io.EOF}}, agent: true}, []string{
			`vifshape_interface_present{interface="wlan0"} 1`, `vifshape_interface_shaped{interface="wlan0"} 0`, "vifshape_agent_running 1",
		}},
		{"both directions", look{interfaces: []*observe.Figures{{Interface: "eth0", Branches: []observe.Figure{inner, leaf}}, {Interface: "gone", Absent: true, Err: io.EOF}}}, []string{
			`vifshape_branch_bytes_total{interface="eth0",branch="eth0",direction="send"} 9223372036854775808`,
			`vifshape_branch_bytes_total{interface="eth0",branch="eth0/rest",direction="receive"} 7`,
			`vifshape_branch_packets_total{interface="eth0",branch="eth0",direction="send"} 3`,
			`vifshape_branch_packets_total{interface="eth0",branch="eth0/rest",direction="receive"} 1`,
			`vifshape_branch_dropped_packets_total{interface="eth0",branch="eth0/rest",direction="receive"} 6`,
			`vifshape_branch_overlimits_total{interface="eth0",branch="eth0",direction="send"} 2`,
			`vifshape_branch_overlimits_total{interface="eth0",branch="eth0/rest",direction="receive"} 0`,
			`vifshape_branch_lent_packets_total{interface="eth0",branch="eth0",direction="send"} 4`,
			`vifshape_branch_lent_packets_total{interface="eth0",branch="eth0/rest",direction="receive"} 0`,
			`vifshape_branch_borrowed_packets_total{interface="eth0",branch="eth0",direction="send"} 5`,
			`vifshape_branch_borrowed_packets_total{interface="eth0",branch="eth0/rest",direction="receive"} 0`,
			`vifshape_branch_backlog_bytes{interface="eth0",branch="eth0/rest",direction="receive"} 90`,
			`vifshape_branch_backlog_packets{interface="eth0",branch="eth0/rest",direction="receive"} 1`,
			`vifshape_branch_rate_bytes_per_second{interface="eth0",branch="eth0",direction="send"} 1000000`,
			`vifshape_branch_rate_bytes_per_second{interface="eth0",branch="eth0/rest",direction="receive"} 1000000`,
			`vifshape_branch_ceil_bytes_per_second{interface="eth0",branch="eth0",direction="send"} 2.5`,
			`vifshape_branch_ceil_bytes_per_second{interface="eth0",branch="eth0/rest",direction="receive"} 2.5`,
			`vifshape_branch_info{interface="eth0",branch="eth0",direction="send",parent="",qdisc=""} 1`,
			`vifshape_branch_info{interface="eth0",branch="eth0/rest",direction="receive",parent="eth0",qdisc="fq_codel"} 1`,
			`vifshape_interface_present{interface="eth0"} 1`,
			`vifshape_interface_present{interface="gone"} 0`,
			`vifshape_interface_shaped{interface="eth0"} 1`,
			"vifshape_agent_running 0",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var page strings.Builder
			if err := tt.look.write(&page); err != nil {
				t.Error(err)
			}
			if d := cmp.Diff(tt.want, samples(page.String(), own...)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestParseAddress(t *testing.T) {
	for _, tt := range []struct{ text, want, err string }{
		{"unix:/run/e.sock", "unix:/run/e.sock", ""},
		{"127.0.0.1:9719", "127.0.0.1:9719", ""},
		{"127.8.0.1:0", "127.8.0.1:0", ""},
		{"[::1]:9719", "[::1]:9719", ""},
		{"[::ffff:127.0.0.1]:1", "127.0.0.1:1", ""},
		{"unix:e.sock", "", "from the root on: write it as unix:/run/exporter.sock"},
		{"unix:", "", "from the root on"},
		{"9719", "", "is no place to listen"},
		{"/run/e.sock", "", "is no place to listen"},
		{"", "", "is no place to listen"},
		{"127.0.0.1:http", "", "no port from 0 to 65535"},
		{"127.0.0.1:65536", "", "no port from 0 to 65535"},
		{"localhost:9719", "", "write 127.0.0.1:9719"},
		{":9719", "", "can be reached from other machines"},
		{"0.0.0.0:9719", "", "can be reached from other machines"},
		{"[::]:9719", "", "can be reached from other machines"},
		{"192.0.2.1:9719", "", "can be reached from other machines"},
		{"[fe80::1%eth0]:9719", "", "can be reached from other machines"},
	} {
		a, err := ParseAddress(tt.text)
		switch {
		case tt.err == "" && (err != nil || a.String() != tt.want):
			t.Errorf("%q is %v, %v", tt.text, a, err)
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%q: %v, not %q", tt.text, err, tt.err)
		}
	}
}

// served is an exporter of nothing at a socket, until the test ends.
func served(t *testing.T) (*Exporter, *http.Client, string) {
	t.Helper()
	dir := t.TempDir()
	e := New(Config{RunDir: filepath.Join(dir, "run"), Version: "v1", Warn: func(text string) { t.Error(text) }})
	file := filepath.Join(dir, "e.sock")
	l, err := Socket(file).Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- e.Serve(ctx, []net.Listener{l}) }()
	t.Cleanup(func() {
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(file); err == nil {
			t.Errorf("%s is left", file)
		}
	})
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", file)
	}}}
	t.Cleanup(c.CloseIdleConnections)
	return e, c, file
}

// ask is a status of an answer, and its text.
func ask(t *testing.T, c *http.Client) (int, string) {
	t.Helper()
	r, err := c.Get("http://vifshape/metrics")
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	return r.StatusCode, string(b)
}

// TestTooMany: while one looks, so many wait, and more are told at once to come again.
func TestTooMany(t *testing.T) {
	e, c, _ := served(t)
	e.turn.Lock() // somebody looks, and takes his time
	const more = 5
	answers := make(chan int, mostRequests+more)
	for range mostRequests + more {
		go func() {
			status, _ := ask(t, c)
			answers <- status
		}()
	}
	for range more {
		if status := <-answers; status != http.StatusServiceUnavailable {
			t.Errorf("status %d", status)
		}
	}
	e.turn.Unlock()
	for range mostRequests {
		if status := <-answers; status != http.StatusOK {
			t.Errorf("status %d", status)
		}
	}
}

// TestSlowClients: those who connect and never end their question keep nobody out, for they
// are sent away in time.
func TestSlowClients(t *testing.T) {
	t.Parallel() // it waits for that
	_, c, file := served(t)
	var all []net.Conn
	for range mostConnections + 10 {
		slow, err := net.Dial("unix", file)
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		if _, err := fmt.Fprint(slow, "GET /metrics HTTP/1.1\r\nHost: vif"); err != nil {
			t.Fatal(err)
		}
		all = append(all, slow)
	}
	if status, text := ask(t, c); status != http.StatusOK || !strings.Contains(text, `vifshape_build_info{version="v1"} 1`) {
		t.Errorf("status %d: %s", status, text)
	}
	if _, err := io.ReadAll(all[0]); err != nil {
		t.Errorf("the first is not sent away: %v", err)
	}
}

// TestLimited: a connection more than there is room for is accepted when one of them ends.
func TestLimited(t *testing.T) {
	file := filepath.Join(t.TempDir(), "e.sock")
	socket, err := net.Listen("unix", file)
	if err != nil {
		t.Fatal(err)
	}
	l := &limited{socket, make(chan struct{}, 1)}
	for range 2 {
		c, err := net.Dial("unix", file)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if len(l.room) != 1 {
		t.Errorf("%d have room", len(l.room))
	}
	accepted := make(chan net.Conn)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	select {
	case <-accepted:
		t.Fatal("two are accepted, and there is room for one")
	default:
	}
	for range 2 { // the second time gives back no more
		_ = first.Close()
	}
	if c := <-accepted; c == nil || len(l.room) != 1 {
		t.Errorf("%v is accepted, and %d have room", c, len(l.room))
	} else {
		c.Close()
	}
	if err := socket.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) || len(l.room) != 0 {
		t.Errorf("%v, and %d have room", err, len(l.room))
	}
}

// TestLeftOver: a socket at which nobody listens is replaced, and nothing else.
func TestLeftOver(t *testing.T) {
	file := filepath.Join(t.TempDir(), "e.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: file, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Socket(file).Listen(); err == nil || !strings.Contains(err.Error(), "somebody answers") {
		t.Errorf("it took the place of another: %v", err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Socket(file).Listen()
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o666 {
		t.Errorf("%v, %v", st, err)
	}
	again.Close()
	if err := os.WriteFile(file, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Socket(file).Listen(); err == nil {
		t.Error("a file is no socket")
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestPassed: sockets that systemd hands over are taken, but for those that others may reach
// and for what is no socket. A descriptor is put where the first is expected in a copy of this
// process.
func TestPassed(t *testing.T) {
	if how := os.Getenv("VIFSHAPE_TEST_PASSED"); how != "" {
		t.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid()))
		all, err := Passed()
		if again, err := Passed(); err != nil || len(again) != 0 {
			t.Errorf("they are taken twice: %v", err)
		}
		if how != "ok" {
			if err == nil || !strings.Contains(err.Error(), how) {
				t.Errorf("%v, not %q", err, how)
			}
			return
		}
		if err != nil || len(all) != 1 {
			t.Fatalf("%v, %v", all, err)
		}
		all[0].Close()
		return
	}
	if all, err := Passed(); err != nil || len(all) != 0 {
		t.Errorf("nobody handed over %v, %v", all, err)
	}
	file := func(l net.Listener, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, tt := range []struct {
		how, fds string
		f        *os.File
	}{
		{"ok", "1", file(net.Listen("unix", filepath.Join(t.TempDir(), "e.sock")))},
		{"ok", "1", file(net.Listen("tcp", "127.0.0.1:0"))},
		{"can be reached from other machines", "1", file(net.Listen("tcp", "0.0.0.0:0"))},
		{"is no socket that listens", "1", null},
		{"LISTEN_FDS is \"many\"", "many", null},
	} {
		c := self(t, "VIFSHAPE_TEST_PASSED="+tt.how, "LISTEN_FDS="+tt.fds)
		c.ExtraFiles = []*os.File{tt.f}
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", tt.how, err, out)
		}
	}
}

// self is this test in a process of its own, with variables.
func self(t *testing.T, env ...string) *exec.Cmd {
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	c.Env = append(os.Environ(), env...)
	return c
}
