package web

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// writable is a server that writes down what it is to do, and what it has warned of.
func writable(t *testing.T) (s *Server, c *http.Client, did, warned *[]string) {
	t.Helper()
	did, warned = new([]string), new([]string)
	ends := func(what string) func(context.Context, string) Answer {
		return func(_ context.Context, id string) Answer {
			*did = append(*did, what+" "+id)
			return Answer{}
		}
	}
	s, c = servedBy(t, Config{Warn: func(text string) { *warned = append(*warned, text) }, Write: &Writing{
		Confirm: time.Minute, Keep: ends("keep"), GoBack: ends("go back from"),
		Apply: func(_ context.Context, policy, plan string) Answer {
			*did = append(*did, "apply "+policy+" by "+plan)
			return Answer{Text: "done"}
		},
	}})
	return s, c, did, warned
}

// post sends something that writes, with headers as lines.
func post(t *testing.T, c *http.Client, path, headers, body string) (status int, text string) {
	t.Helper()
	r, err := http.NewRequest("POST", "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(headers) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		r.Header.Set(k, v)
	}
	a, text := answer(t, c, r)
	return a.StatusCode, text
}

// TestWrite: what writes is done for who has the code, as he types it, and for nobody else.
func TestWrite(t *testing.T) {
	s, c, did, warned := writable(t)
	if code := s.Code(); len(code) != len("ABCD-EFGH-IJKL-MNOP") || code == New(Config{}).Code() {
		t.Errorf("the code is %q", code)
	}
	has := "Vifshape-Code: " + s.Code()
	wrong := "Vifshape-Code: " + strings.Map(func(r rune) rune {
		if r == 'A' {
			return 'B'
		}
		return 'A'
	}, s.Code())
	for _, tt := range []struct {
		path, headers, body string
		status              int
		text                string
	}{
		{"/apply", has + "\nVifshape-Plan: p", "x", 200, `{"text":"done"}`},
		{"/apply", has, strings.Repeat("x", mostPolicy+1), 413, "more than"},
		{"/apply", "", "x", 403, "takes the write code"},
		{"/apply", "Vifshape-Code:  ", "x", 403, "takes the write code"},
		{"/apply", wrong, "x", 403, "is not the write code"},
		{"/apply", wrong, strings.Repeat("x", mostPolicy-1), 403, "is not the write code"},
		{"/apply", "Vifshape-Code: " + s.session, "x", 403, "is not the write code"},
		{"/apply", "Vifshape-Code: " + s.token, "x", 403, "is not the write code"},
		{"/apply", has[:len(has)-1], "x", 403, "is not the write code"},
		{"/apply", "Cookie: Vifshape-Code=" + s.Code(), "x", 403, "takes the write code"},
		{"/apply?Vifshape-Code=" + s.Code(), "", "x", 403, "takes the write code"},
		{"/apply", has + "\nSec-Fetch-Site: cross-site", "x", 403, "cross-origin"},
		{"/apply", has + "\nSec-Fetch-Site: same-site", "x", 403, "cross-origin"},
		{"/apply", has + "\nOrigin: http://localhost:8719", "x", 403, "cross-origin"},
		{"/apply", has + "\nOrigin: http://other.example", "x", 403, "cross-origin"},
		{"/keep", has, "", 200, "names no apply"},
		{"/keep", wrong, "id", 403, "is not the write code"},
		{"/keep", strings.ToLower(has), "id", 200, `{"text":""}`},
		{"/back", "", "id", 403, "takes the write code"},
		{"/back", has + "\nOrigin: http://localhost", "id", 200, `{"text":""}`},
		{"/back", "Vifshape-Code: " + strings.ReplaceAll(s.Code(), "-", " "), "id", 200, `{"text":""}`},
	} {
		if status, text := post(t, c, tt.path, tt.headers, tt.body); status != tt.status || !strings.Contains(text, tt.text) {
			t.Errorf("%s (%s) is %d: %.200s", tt.path, tt.headers, status, text)
		}
	}
	if d := cmp.Diff([]string{"apply x by p", "keep id", "go back from id", "go back from id"}, *did); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for path, want := range map[string]int{"/": 200, "/page.js": 200, "/apply": 404, "/keep": 404, "/back": 404, "/history?branch=eth0": 404, "/explain?branch=none/x": 422} {
		r, err := http.NewRequest("GET", "http://localhost"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(codeHeader, s.Code())
		a, text := answer(t, c, r)
		if a.StatusCode != want || strings.Contains(text, s.Code()) || strings.Contains(text, s.code.is) {
			t.Errorf("GET %s is %s: %.100s", path, a.Status, text)
		}
	}
	told := opened(t, c, "")
	for range 2 {
		if _, _, data := told.next(); strings.Contains(data, s.Code()) || strings.Contains(data, s.code.is) {
			t.Errorf("a page is told the code: %s", data)
		}
	}
	if len(*warned) != 0 {
		t.Errorf("%q", *warned)
	}
}

// TestTyped: digits that base32 does not have are the letters that look like them.
func TestTyped(t *testing.T) {
	c := &code{is: "OIBO22223333OIBZ"}
	for sent, right := range map[string]bool{"o1b0-2222-3333-0i8z": true, "OIBO22223333OIBZ": true, "OIBO22223333OIB2": false, "OIBO22223333OIB": false, "OIBO22223333OIBZZ": false} {
		if _, err := c.check(sent); (err == nil) != right {
			t.Errorf("%s: %v", sent, err)
		}
	}
}

// TestWrongCodes: after so many wrong codes in a row the right one is none any more, and the
// terminal says so once; a right one in time begins anew, and none at all does not count.
func TestWrongCodes(t *testing.T) {
	s, c, did, warned := writable(t)
	send := func(code string) (int, string) { t.Helper(); return post(t, c, "/keep", "Vifshape-Code: "+code, "id") }
	for range mostWrong - 1 {
		send("AAAA")
	}
	for range 3 * mostWrong {
		send("")
	}
	if status, text := send(s.Code()); status != 200 {
		t.Fatalf("%d: %s", status, text)
	}
	for range mostWrong {
		send("AAAA")
	}
	for _, code := range []string{s.Code(), "AAAA", ""} {
		if status, text := send(code); status != 403 || !strings.Contains(text, "nothing is written any more: 10 write codes in a row were wrong; start `vifshape web --write` again") {
			t.Errorf("%q: %d: %s", code, status, text)
		}
	}
	if len(*did) != 1 || len(*warned) != 1 || !strings.Contains((*warned)[0], "10 wrong write codes came in a row") {
		t.Errorf("%q, %q", *did, *warned)
	}
	if strings.Contains(strings.Join(*warned, ""), s.Code()) {
		t.Error("the code is in a warning")
	}
}

// TestWriteTurns: one writes at a time, and the server does not end before what was begun is put
// back.
func TestWriteTurns(t *testing.T) {
	began, goOn := make(chan string, 2), make(chan struct{})
	s := New(Config{RunDir: filepath.Join(t.TempDir(), "run"), Warn: func(text string) { t.Error(text) }, Write: &Writing{
		Apply: func(ctx context.Context, policy, _ string) Answer {
			began <- policy
			<-ctx.Done()
			<-goOn
			return Answer{}
		},
	}})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "w.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, []net.Listener{l}) }()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.Addr().String())
	}}}
	var all sync.WaitGroup
	for _, policy := range []string{"a", "b"} {
		r, err := http.NewRequest("POST", "http://localhost/apply", strings.NewReader(policy))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(codeHeader, s.Code())
		all.Go(func() {
			if a, err := c.Do(r); err == nil {
				a.Body.Close()
			}
		})
	}
	<-began
	if len(s.writing) != 1 || len(began) != 0 {
		t.Error("two write at once")
	}
	end()
	all.Wait() // its connections are closed
	select {
	case err := <-ended:
		t.Errorf("it ended in the middle of a change: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
