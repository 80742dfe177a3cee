package exporter

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cmd/internal/listen"
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
		Queue:    &tc.LeafStats{Kind: "fq_codel", Counters: tc.Counters{Drops: 6}, Marks: 12},
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
			`vifshape_branch_marked_packets_total{interface="eth0",branch="eth0/rest",direction="receive"} 12`,
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

// served is an exporter of nothing at a socket, until the test ends.
func served(t *testing.T) (*Exporter, *http.Client, string) {
	t.Helper()
	dir := t.TempDir()
	e := New(Config{RunDir: filepath.Join(dir, "run"), Version: "v1", Warn: func(text string) { t.Error(text) }})
	file := filepath.Join(dir, "e.sock")
	l, err := listen.Socket(file).Listen(0o666)
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

// TestSettled: what is unlike its record only while a policy is applied is not told, what stays
// so is, and costs no time again.
func TestSettled(t *testing.T) {
	for _, x := range []struct {
		name  string
		wrong int           // so often
		since time.Duration // it was found so
		once  bool          // it is looked at
		err   bool
	}{
		{"nothing", 0, 0, true, false},
		{"a moment", 1, 0, false, false},
		{"for good", 1 << 30, 0, false, true},
		{"again", 1 << 30, time.Minute, true, true}, // though whoever asked first did not wait for it
	} {
		t.Run(x.name, func(t *testing.T) {
			e, reads := New(Config{}), 0
			if x.since > 0 {
				e.unlike = map[string]time.Time{"eth0": time.Now().Add(-x.since)}
			}
			all, err := e.settled(t.Context(), func() ([]*observe.Figures, error) {
				f := &observe.Figures{Interface: "eth0"}
				if reads++; reads <= x.wrong {
					f.Err = io.EOF
				}
				return []*observe.Figures{f}, nil
			})
			if err != nil || (reads == 1) != x.once || (all[0].Err != nil) != x.err {
				t.Errorf("%d looks, %v, %v", reads, all[0].Err, err)
			}
		})
	}
	e := New(Config{})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := e.settled(ctx, func() ([]*observe.Figures, error) {
		cancel()
		return []*observe.Figures{{Interface: "eth0", Err: io.EOF}}, nil
	})
	if err == nil || e.unlike["eth0"].IsZero() {
		t.Errorf("%v, %v: whoever asks next waits anew", err, e.unlike)
	}
}

// TestIdleClients: those who have asked, and keep their connection, keep nobody out.
func TestIdleClients(t *testing.T) {
	t.Parallel() // it waits for that
	_, c, file := served(t)
	for range mostConnections + 2 { // the last two wait to be accepted
		idle, err := net.Dial("unix", file)
		if err != nil {
			t.Fatal(err)
		}
		defer idle.Close()
		if _, err := fmt.Fprint(idle, "GET / HTTP/1.1\r\nHost: vifshape\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	c.Timeout = idleTime / 4
	if status, _ := ask(t, c); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
}

// TestOtherMethods: who does anything but read is told so, and where the metrics are.
func TestOtherMethods(t *testing.T) {
	_, c, _ := served(t)
	for _, x := range []struct {
		method, path string
		status       int
	}{{http.MethodHead, "/metrics", http.StatusOK}, {http.MethodPost, "/metrics", http.StatusMethodNotAllowed}, {http.MethodGet, "/", http.StatusNotFound}} {
		q, err := http.NewRequestWithContext(t.Context(), x.method, "http://vifshape"+x.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != x.status {
			t.Errorf("%s %s: status %d, not %d", x.method, x.path, r.StatusCode, x.status)
		}
	}
}
