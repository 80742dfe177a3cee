package web

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cmd/internal/observe"
)

// served is a server that looks at nothing by itself, at a socket file, and a client of it.
func served(t *testing.T) (*Server, *http.Client) {
	t.Helper()
	return servedBy(t, Config{Warn: func(text string) { t.Error(text) }})
}

// servedBy is served by a server of a kind.
func servedBy(t *testing.T, cfg Config) (*Server, *http.Client) {
	t.Helper()
	cfg.RunDir, cfg.Version = t.TempDir(), "v1"
	cfg.Plan = func(_ context.Context, text string) Answer { return Answer{Text: "a plan of " + text} }
	s := New(cfg)
	file := filepath.Join(t.TempDir(), "w.sock")
	l, err := net.Listen("unix", file)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Link(l); ok {
		t.Error("who may connect to a socket file needs no link")
	}
	h := httptest.NewUnstartedServer(s.handler())
	h.Listener.Close()
	h.Listener = l
	h.Start()
	t.Cleanup(h.Close)
	return s, &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", file)
	}}}
}

// answer is what a request gets.
func answer(t *testing.T, c *http.Client, r *http.Request) (*http.Response, string) {
	t.Helper()
	a, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Error(err)
	}
	return a, string(b)
}

// TestRefusals: the page and what it asks for is answered, and what others ask for is not; all
// answers keep the browser to what comes from here.
func TestRefusals(t *testing.T) {
	s, c := served(t)
	s.add(nil, time.Time{}, time.Now())
	const other, same, cross = "Sec-Fetch-Site: same-site", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"
	for _, tt := range []struct {
		method, host, path string
		header             string // the first
		body               string
		status             int
		text               string
	}{
		{"GET", "localhost:8719", "/", "", "", 200, "<title>vifshape</title>"},
		{"GET", "127.0.0.1", "/page.js", same, "", 200, "use strict"},
		{"GET", "[::1]:1", "/uplot/uPlot.min.css", same, "", 200, ".uplot"},
		{"GET", "[::1]", "/uplot/LICENSE", "", "", 200, "MIT License"},
		{"GET", "rebound.example", "/", "", "", 421, "not to"},
		{"GET", "localhost.example:80", "/history", "", "", 421, "not to"},
		{"GET", "10.0.0.1", "/page.js", "", "", 421, "not to"},
		{"GET", "127.0.0.1.example", "/", "", "", 421, "not to"},
		{"GET", "localhost", "/none", "", "", 404, ""},
		{"GET", "localhost", "/", cross + "\nSec-Fetch-Mode: navigate", "", 200, ""}, // a link to it
		{"GET", "localhost", "/", cross + "\nSec-Fetch-Mode: no-cors", "", 403, "another page"},
		{"GET", "localhost", "/history?branch=eth0", other, "", 403, "another page"},
		{"GET", "localhost", "/explain?branch=eth0", other, "", 403, "another page"},
		{"GET", "localhost", "/events", other, "", 403, "another page"},
		{"GET", "localhost", "/history?branch=eth0", same, "", 404, "no such branch"},
		{"POST", "localhost", "/plan", same, "x", 200, "a plan of x"},
		{"POST", "localhost", "/plan", "", "x", 200, "a plan of x"}, // by curl
		{"POST", "localhost", "/plan", cross, "x", 403, "cross-origin"},
		{"POST", "localhost", "/plan", other, "x", 403, "cross-origin"},
		{"POST", "localhost", "/plan", "Origin: http://other.example", "x", 403, "cross-origin"},
		{"POST", "localhost", "/plan", same, strings.Repeat("x", mostPolicy+1), 413, "more than"},
		{"GET", "localhost", "/plan", same, "", 404, ""},
		{"GET", "localhost", "/explain", same, "", 422, "no branch"},
		{"GET", "localhost", "/explain?branch=none/x", same, "", 422, "none"},
		{"POST", "localhost", "/events", same, "", 405, ""},
		{"POST", "localhost", "/apply", same + "\nVifshape-Code: " + s.Code(), "x", 405, ""},
		{"POST", "localhost", "/keep", same + "\nVifshape-Code: " + s.Code(), "x", 405, ""},
		{"POST", "localhost", "/back", same + "\nVifshape-Code: " + s.Code(), "x", 405, ""},
	} {
		r, err := http.NewRequest(tt.method, "http://"+tt.host+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(tt.header) {
			k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
			r.Header.Set(k, v)
		}
		a, text := answer(t, c, r)
		if a.StatusCode != tt.status || !strings.Contains(text, tt.text) {
			t.Errorf("%s http://%s%s (%s) is %s: %.200s", tt.method, tt.host, tt.path, tt.header, a.Status, text)
		}
		if h := a.Header; h.Get("Content-Security-Policy") != allowed || h.Get("X-Content-Type-Options") != "nosniff" || tt.status == 200 && h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", tt.path, h)
		}
	}
}

// TestToken: at a port nobody gets anything without the token, or the session that it is
// exchanged for.
func TestToken(t *testing.T) {
	s := New(Config{Warn: func(text string) { t.Error(text) }})
	h := httptest.NewServer(s.handler())
	defer h.Close()
	link, ok := s.Link(h.Listener)
	if !ok || !strings.HasPrefix(link, h.URL+"/?token=") {
		t.Fatal(link)
	}
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ask := func(url string, cookie *http.Cookie) *http.Response {
		t.Helper()
		r, err := http.NewRequest("GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if cookie != nil {
			r.AddCookie(cookie)
		}
		a, _ := answer(t, c, r)
		return a
	}
	for _, path := range []string{"/", "/page.js", "/events", "/history?branch=eth0", "/explain?branch=eth0", "/?token=", "/?token=" + s.session, "/page.js?token=" + s.token} {
		if a := ask(h.URL+path, nil); a.StatusCode != http.StatusUnauthorized || len(a.Cookies()) != 0 {
			t.Errorf("%s: %s", path, a.Status)
		}
	}
	a := ask(link, nil)
	if a.StatusCode != http.StatusSeeOther || a.Header.Get("Location") != "/" || len(a.Cookies()) != 1 {
		t.Fatalf("%s: %v", a.Status, a.Header)
	}
	k := a.Cookies()[0]
	if k.SameSite != http.SameSiteStrictMode || !k.HttpOnly || k.Value == s.token || k.MaxAge != 0 || !strings.HasSuffix(h.URL, strings.TrimPrefix(k.Name, "vifshape-")) {
		t.Errorf("the cookie is %v", k)
	}
	if a := ask(h.URL+"/page.js", k); a.StatusCode != http.StatusOK {
		t.Errorf("with the cookie: %s", a.Status)
	}
	k.Value += "x"
	if a := ask(h.URL+"/page.js", k); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("with another cookie: %s", a.Status)
	}
}

// told is one stream under way.
type told struct {
	t   *testing.T
	all *bufio.Scanner
	end func()
}

// opened is one, after the event that was had last.
func opened(t *testing.T, c *http.Client, last string) *told {
	t.Helper()
	ctx, end := context.WithTimeout(t.Context(), time.Minute)
	r, err := http.NewRequestWithContext(ctx, "GET", "http://localhost/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	a, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if a.StatusCode != http.StatusOK || a.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s: %v", a.Status, a.Header)
	}
	s := &told{t, bufio.NewScanner(a.Body), func() { end(); a.Body.Close() }}
	t.Cleanup(s.end)
	return s
}

// next is the next event: its kind, its id, its data.
func (s *told) next() (kind, id, data string) {
	s.t.Helper()
	for s.all.Scan() {
		k, v, _ := strings.Cut(s.all.Text(), ": ")
		switch k {
		case "event":
			kind = v
		case "id":
			id = v
		case "data":
			data = v
		case "":
			if kind != "" {
				return kind, id, data
			}
		}
	}
	s.t.Fatalf("the stream ended: %v", s.all.Err())
	return
}

// live is an interface with one branch, in whose queue so many bytes wait.
func live(waits uint64) []*observe.Live {
	return []*observe.Live{{Interface: "eth0", Branches: []observe.LiveBranch{{Path: "eth0", Leaf: true, Sends: observe.Passing{
		Limits: observe.Limits{Ceil: 100}, Since: &observe.Pace{Bandwidth: 8 * 1000 * 1000, Marks: 2.5}, Backlog: waits}}}}}
}

// TestStream: who comes is told what there is and what happens from then on; who was cut off what
// he missed, and one who was told by another server begins anew.
func TestStream(t *testing.T) {
	s, c := served(t)
	first := opened(t, c, "") // before anything was seen
	if kind, _, data := first.next(); kind != "hello" || data != fmt.Sprintf(`{"boot":%q,"version":"v1","write":0}`, s.boot) {
		t.Fatalf("%s: %s", kind, data)
	}
	if kind, _, data := first.next(); kind != "waits" || data != "{}" {
		t.Fatalf("%s: %s", kind, data)
	}
	at := time.UnixMilli(1_000_000)
	s.add(live(0), time.Time{}, at)
	if kind, _, data := first.next(); kind != "tree" || !strings.Contains(data, `"path":"eth0"`) {
		t.Fatalf("%s: %s", kind, data)
	}
	for i := range 5 {
		was := at
		at = at.Add(time.Second)
		s.add(live(uint64(i)), was, at)
		kind, id, data := first.next()
		want := fmt.Sprintf(`{"seq":%d,"t":%d,"d":1000,"rows":[[0,8000000,%d,0,2.5,%d]]}`, i+1, at.UnixMilli(), i, i)
		if kind != "tick" || id != fmt.Sprintf("%s-%d", s.boot, i+1) || data != want {
			t.Fatalf("%s %s: %s, want %s", kind, id, data, want)
		}
	}
	for last, missed := range map[string]int{s.boot + "-2": 3, s.boot + "-0": 5, s.boot + "-4": 1, "OTHER-2": 1, s.boot + "-99": 1, s.boot + "-x": 1, "": 1} {
		again := opened(t, c, last)
		for _, want := range []string{"hello", "waits", "tree"} {
			if kind, _, data := again.next(); kind != want {
				t.Fatalf("%s: %s", kind, data)
			}
		}
		for i := range missed {
			if _, id, _ := again.next(); id != fmt.Sprintf("%s-%d", s.boot, 6-missed+i) {
				t.Errorf("after %q: %s is told, as one of %d", last, id, missed)
			}
		}
		again.end()
	}
	r, err := http.NewRequest("GET", "http://localhost/history?branch=eth0&direction=send", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, text := answer(t, c, r)
	var past series
	if err := json.Unmarshal([]byte(text), &past); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(series{5, []int64{1001000, 1002000, 1003000, 1004000, 1005000}, []int64{1000, 1000, 1000, 1000, 1000},
		[]float32{8e6, 8e6, 8e6, 8e6, 8e6}, []uint32{0, 1, 2, 3, 4}, make([]float32, 5), []float32{2.5, 2.5, 2.5, 2.5, 2.5}, []uint32{0, 1, 2, 3, 4}}, past); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	s.add(live(1), at, at.Add(-time.Hour)) // the clock was set back
	if len(s.history.ticks) != 1 {
		t.Errorf("%d ticks are left", len(s.history.ticks))
	}
}

// TestTooMany: so many pages are told what happens, and so many questions wait; more are told to
// come again, until one ends.
func TestTooMany(t *testing.T) {
	s, c := served(t)
	var all []*told
	for range mostStreams {
		all = append(all, opened(t, c, ""))
	}
	status := func(method, path string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://localhost"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		a, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		return a.StatusCode
	}
	if got := status("GET", "/events"); got != http.StatusServiceUnavailable {
		t.Errorf("one page more is answered with %d", got)
	}
	all[0].end()
	for deadline := time.Now().Add(time.Minute); status("GET", "/events") != http.StatusOK; { // it is noticed in time
		if time.Now().After(deadline) {
			t.Fatal("the room of one that ended is not given back")
		}
		time.Sleep(5 * time.Millisecond)
	}

	s.turn <- struct{}{} // somebody asks, and it takes its time
	answers := make(chan int, mostQuestions+3)
	for range mostQuestions + 3 {
		go func() { answers <- status("POST", "/plan") }()
	}
	for range 3 {
		if got := <-answers; got != http.StatusServiceUnavailable {
			t.Errorf("status %d", got)
		}
	}
	<-s.turn
	for range mostQuestions {
		if got := <-answers; got != http.StatusOK {
			t.Errorf("status %d", got)
		}
	}
}

// TestServe: it looks by itself, also where nothing is shaped, and ends when it is told to.
func TestServe(t *testing.T) {
	s := New(Config{RunDir: filepath.Join(t.TempDir(), "run"), Version: "v1", Warn: func(text string) { t.Error(text) }})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "w.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Serve(ctx, []net.Listener{l}) }()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.Addr().String())
	}}}
	told := opened(t, c, "")
	for kind := ""; kind != "tick"; kind, _, _ = told.next() {
	}
	end()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// hashes are those of uPlot 1.6.32 as the npm registry has it.
var hashes = map[string]string{
	"uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
	"uPlot.min.css":     "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
	"LICENSE":           "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}

// TestVendored: what is somebody else's is as he published it.
func TestVendored(t *testing.T) {
	files, err := fs.ReadDir(embedded, "page/uplot")
	if err != nil || len(files) != len(hashes) {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		b, err := embedded.ReadFile("page/uplot/" + f.Name())
		sum := sha256.Sum256(b)
		if got := hex.EncodeToString(sum[:]); err != nil || got != hashes[f.Name()] {
			t.Errorf("%s has SHA-256 %s, %v", f.Name(), got, err)
		}
	}
}

// TestPage: our own part of the page names no other place, has nothing that its
// Content-Security-Policy forbids, and puts names in as text alone.
func TestPage(t *testing.T) {
	never := regexp.MustCompile(`https?://|innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|\bstyle="|\son[a-z]+="|<style|<script>|@import|url\(`)
	for _, name := range []string{"index.html", "page.js", "page.css", "icon.svg"} {
		b, err := embedded.ReadFile("page/" + name)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "http://www.w3.org/2000/svg", "")
		if found := never.FindString(text); found != "" {
			t.Errorf("%s has %q", name, found)
		}
	}
}
