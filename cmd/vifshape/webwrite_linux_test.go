package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/web"
	"github.com/vifshape/vifshape/hierarchy"
)

// writer is a server of a page that may write.
type writer struct {
	*running
	socket, code string
}

func (n *network) writer(args ...string) *writer {
	n.Helper()
	lines, r := n.webServer(2, append([]string{"--write"}, args...)...)
	code, ok := strings.CutPrefix(lines[1], "write code: ")
	if !ok {
		n.Fatalf("the server says %q", lines)
	}
	return &writer{r, strings.TrimPrefix(lines[0], "unix:"), code}
}

// post sends something to it, with headers as "NAME: VALUE".
func (w *writer) post(path, body string, headers ...string) (status int, a web.Answer) {
	w.n.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.socket)
	}}}
	r, err := http.NewRequest("POST", "http://localhost/"+path, strings.NewReader(body))
	if err != nil {
		w.n.Fatal(err)
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		r.Header.Set(k, v)
	}
	got, err := c.Do(r)
	if err != nil {
		w.n.Fatal(err)
	}
	defer got.Body.Close()
	b, err := io.ReadAll(got.Body)
	if err != nil {
		w.n.Fatal(err)
	}
	if got.StatusCode == http.StatusOK {
		err = json.Unmarshal(b, &a)
	} else {
		a.Text = string(b)
	}
	if err != nil {
		w.n.Fatal(err)
	}
	return got.StatusCode, a
}

// gate is locked while nothing comes through it.
type gate struct{ sync.RWMutex }

// gated is a connection by which something comes while its gate is open.
type gated struct {
	net.Conn
	gate *gate
}

func (c gated) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.gate.RLock()
	defer c.gate.RUnlock()
	return n, err
}

// has says whether a class of the interface has such a rate, as the kernel tells.
func (n *network) has(rate hierarchy.Bandwidth) bool {
	n.Helper()
	return slices.ContainsFunc(n.sending().Classes, func(c hierarchy.Class) bool { return c.Rate == rate })
}

// rated is webPolicy with another rate of eth0/web/api.
func rated(rate string) string { return strings.Replace(webPolicy, "800kbit", rate, 1) }

// TestKernelWebWrite: a real browser applies the policy whose plan it has shown, for who has the
// code: it is kept where he says so, and else goes back by itself.
func TestKernelWebWrite(t *testing.T) {
	b := newBrowser(t)
	n := newNetwork(t)
	n.ok("apply", n.policy("policy.toml", webPolicy))
	w := n.writer()
	var way gate
	at := n.forward(func() (net.Conn, error) {
		c, err := net.Dial("unix", w.socket)
		return gated{c, &way}, err
	})
	place := "http://" + at + "/"
	b.see(1280, 800, "dark")
	b.do(chromedp.Navigate(place + "#eth0/web/api"))
	b.until(`document.getElementById("path").textContent === "eth0/web/api"`)
	b.do(chromedp.Click(chromedp.CSS("#to-plan")))

	plan := func(text string) {
		t.Helper()
		b.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`(() => { const p = document.getElementById("policy"); p.value = %q; p.dispatchEvent(new Event("input")); })()`, text)))
		b.until(`document.getElementById("apply-row").hidden`)
		b.do(chromedp.Click(chromedp.CSS("#ask-plan")))
		b.until(`!document.getElementById("ask-plan").disabled && document.getElementById("plan").textContent.includes("eth0/web/api") && !document.getElementById("apply-row").hidden`)
	}
	give := func(code string) {
		t.Helper()
		b.until(`document.getElementById("ask-code").open && document.activeElement.id === "code"`)
		b.do(chromedp.KeyEvent(code), chromedp.KeyEvent(kb.Enter))
	}
	pictures := func(name string) {
		t.Helper()
		for _, width := range []int64{360, 1280} {
			b.see(width, 800, "dark")
			if got := value[int64](b, "document.documentElement.scrollWidth"); got > width {
				t.Errorf("%s: it is %d wide, in a window of %d", name, got, width)
			}
			b.picture(fmt.Sprintf("%s-dark-%d", name, width))
		}
	}
	waits := func() {
		t.Helper()
		b.until(`!document.getElementById("waits").hidden && /^eth0 goes back in [0-9]+.s to what it was, unless you keep it.$/.test(document.getElementById("waits-what").textContent)`)
	}
	outcome := func(text string) {
		t.Helper()
		b.until(fmt.Sprintf(`document.getElementById("waits-what").textContent === %q && document.getElementById("waits-do").hidden && document.title === "vifshape"`, text))
		n.until("the guard's end", func() bool { return len(n.guards()) == 0 && len(n.children(w.Process.Pid)) == 0 })
		if u, err := n.store.Unconfirmed(); err != nil || u != nil {
			t.Errorf("%+v, %v waits", u, err)
		}
	}

	// The code, and Keep.
	plan(rated("900kbit"))
	if got := value[string](b, `document.getElementById("apply").textContent`); got != "Apply, and go back in 60\u202fs unless kept" {
		t.Errorf("the button says %q", got)
	}
	pictures("planned")
	b.mayFail(true) // a refusal is a line in the console
	b.do(chromedp.Click(chromedp.CSS("#apply")))
	give("AAAA-BBBB-CCCC-DDDD")
	b.until(`document.getElementById("code-wrong").textContent.startsWith("that is not the write code that")`)
	if !n.has(800_000) || len(n.guards()) != 0 {
		t.Error("a wrong code changed something")
	}
	pictures("code")
	give(strings.ToLower(w.code))
	waits()
	b.mayFail(false)
	b.until(`!document.getElementById("ask-code").open && document.getElementById("apply-row").hidden`)
	if !n.has(900_000) || len(n.guards()) != 1 {
		t.Error("it is not applied")
	}
	pictures("waits")
	seconds := `parseInt(document.getElementById("waits-what").textContent.match(/[0-9]+/g)[1])`
	first := value[int](b, seconds)
	b.until(fmt.Sprintf("%s < %d && document.title.startsWith(%[1]s)", seconds, first))
	b.do(chromedp.Click(chromedp.CSS("#keep"))) // the code is known by now
	outcome("What was applied to eth0 is kept.")
	if !n.has(900_000) {
		t.Error("it is not kept")
	}
	b.do(chromedp.Click(chromedp.CSS("#waits-close")))
	b.until(`document.getElementById("waits").hidden`)

	// Going back at once, from a page that has been loaded again and so asks anew.
	plan(rated("1mbit"))
	b.do(chromedp.Click(chromedp.CSS("#apply")))
	waits()
	b.do(chromedp.Reload())
	waits()
	b.do(chromedp.Click(chromedp.CSS("#back")))
	give(w.code)
	outcome("eth0 is again what it was.")
	if !n.has(900_000) || n.has(1_000_000) {
		t.Error("it did not go back")
	}

	// What has another plan by now is not applied.
	b.do(chromedp.Click(chromedp.CSS("#to-plan")))
	plan(rated("1100kbit"))
	n.ok("apply", n.policy("policy.toml", rated("1200kbit")))
	b.do(chromedp.Click(chromedp.CSS("#apply")))
	b.until(`document.getElementById("plan").className === "wrong" && document.getElementById("plan").textContent.includes("this is not the plan that was shown") && document.getElementById("apply-row").hidden`)
	if !n.has(1_200_000) || n.has(1_100_000) {
		t.Error("it is applied")
	}

	// Nobody says anything; and another server has another code.
	b.mayFail(true)
	w.ends()
	was := w.code
	w = n.writer("--confirm", "8s")
	if w.code == was {
		t.Error("the code stays the same")
	}
	b.until(`document.getElementById("state").className === "live" && document.getElementById("apply").textContent.includes("8\u202fs")`)
	b.mayFail(false)
	plan(rated("700kbit"))
	b.do(chromedp.Click(chromedp.CSS("#apply")))
	began := time.Now()
	give(w.code)
	waits()
	if !n.has(700_000) {
		t.Error("it is not applied")
	}
	outcome("eth0 was not confirmed in time, and is again what it was.")
	if took := time.Since(began); !n.has(1_200_000) || n.has(700_000) || took < 8*time.Second {
		t.Errorf("after %v it did not go back", took)
	}
	pictures("over")

	// The policy cuts off the page itself: it is told when there is a way again.
	b.do(chromedp.Click(chromedp.CSS("#waits-close")))
	plan(rated("700kbit"))
	way.Lock()
	b.do(chromedp.Click(chromedp.CSS("#apply")))
	n.until("the apply", func() bool { return n.has(700_000) })
	b.until(`document.getElementById("apply-late").innerText.startsWith("No answer yet.") && document.getElementById("waits").hidden`)
	n.until("a way back", func() bool { return n.has(1_200_000) && len(n.guards()) == 0 })
	way.Unlock()
	outcome("eth0 was not confirmed in time, and is again what it was.")
	b.until(`document.getElementById("apply-late").hidden && document.getElementById("plan").hidden`)

	known := value[string](b, `JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, document.documentElement.outerHTML, document.getElementById("code").value])`)
	for _, code := range []string{was, w.code} {
		if strings.Contains(known, code) || strings.Contains(strings.Join(b.asked, " "), code) {
			t.Error("the page keeps the code, or tells it in an address")
		}
	}
	b.wellBehaved(place)
	w.ends()
	n.ok("clear")
	n.clean()
}

// TestKernelWebWriteWords: what cannot be applied is answered in the words of the command, and
// changes nothing; what was applied goes back though the server is gone.
func TestKernelWebWriteWords(t *testing.T) {
	n := newNetwork(t)
	n.public()
	file := n.policy("policy.toml", webPolicy)
	n.ok("apply", file)
	w := n.writer()
	code := "Vifshape-Code: " + w.code
	command := func(text string) string {
		t.Helper()
		c := n.command("apply", "--confirm", "60s", "-")
		c.Stdin = strings.NewReader(text)
		return strings.ReplaceAll(n.start(c).wait().stderr, "standard input:", "policy:")
	}
	refused := func(what, text, plan, words string) {
		t.Helper()
		status, a := w.post("apply", text, code, "Vifshape-Plan: "+plan)
		want := command(text)
		if status != http.StatusOK || !a.Wrong || a.Text != want || !strings.Contains(a.Text, words) {
			t.Errorf("%s: %d, %+v\nthe command says %q", what, status, a, want)
		}
		if !n.has(800_000) {
			t.Errorf("%s: something was changed", what)
		}
	}
	refused("unlawful", "version = 1\n[interface.eth0]\nrat = 1\n", "", `did you mean "rate"?`)
	refused("no such interface", strings.ReplaceAll(webPolicy, "eth0", "eth7"), "", "eth7")

	planned := func(text string) string {
		t.Helper()
		status, a := w.post("plan", text)
		if status != http.StatusOK || a.Wrong || a.Plan == "" {
			t.Fatalf("%d, %+v", status, a)
		}
		return a.Plan
	}
	next := rated("900kbit")
	plan := planned(next)
	if _, a := w.post("plan", webPolicy); a.Plan != "" || a.Wrong {
		t.Errorf("what changes nothing can be applied: %+v", a)
	}
	for _, tt := range []struct{ what, text, plan string }{{"no plan", next, ""}, {"another text", next + "#\n", plan}, {"another plan", rated("1mbit"), plan}} {
		if status, a := w.post("apply", tt.text, code, "Vifshape-Plan: "+tt.plan); status != http.StatusOK || !a.Wrong || !strings.Contains(a.Text, "this is not the plan that was shown") || !n.has(800_000) {
			t.Errorf("%s: %d, %+v", tt.what, status, a)
		}
	}
	for _, headers := range [][]string{{}, {"Vifshape-Code: AAAA-AAAA-AAAA-AAAA"}, {code, "Origin: http://localhost:1"}, {code, "Sec-Fetch-Site: same-site"}} {
		if status, a := w.post("apply", next, append(headers, "Vifshape-Plan: "+plan)...); status != http.StatusForbidden || !n.has(800_000) {
			t.Errorf("%q: %d, %+v", headers, status, a)
		}
	}

	// Another process has applied something that waits; then the page has.
	n.ok("apply", "--confirm", "60s", n.policy("other.toml", strings.Replace(webPolicy, "4mbit", "5mbit", 1)))
	refused("another's waits", next, plan, "eth0 waits to be confirmed: ")
	u, err := n.store.Unconfirmed()
	if err != nil || u == nil {
		t.Fatal(u, err)
	}
	if status, a := w.post("back", u.ID(), code); status != http.StatusOK || a.Wrong || a.Text != "" {
		t.Errorf("%d, %+v", status, a)
	}
	if r := n.run("plan", "--detailed-exitcode", file); r.code != 0 {
		t.Errorf("%v", r)
	}
	n.until("the guard's end", func() bool { return len(n.guards()) == 0 }) // else it goes on with the next one
	status, a := w.post("apply", next, code, "Vifshape-Plan: "+planned(next))
	if status != http.StatusOK || a.Wrong || !strings.Contains(a.Text, "vifshape: eth0 goes back at ") || !n.has(900_000) {
		t.Fatalf("%d, %+v", status, a)
	}
	if got := command(webPolicy); !strings.Contains(got, "eth0 waits to be confirmed: the policy was applied by ") || !n.has(900_000) {
		t.Errorf("the command says %q", got)
	}
	for _, path := range []string{"keep", "back"} { // of the one before, as in a page that was cut off
		if status, a := w.post(path, u.ID(), code); status != http.StatusOK || !a.Wrong || !strings.Contains(a.Text, "that apply waits no more") || !n.has(900_000) {
			t.Errorf("%s: %d, %+v", path, status, a)
		}
	}
	if out := n.ok("rollback", "--list"); !strings.Contains(out, "  the policy  ") {
		t.Errorf("the history is\n%s", out)
	}

	// The server is killed: what it has applied goes back nevertheless.
	guard := n.guards()
	if len(guard) != 1 {
		t.Fatalf("%d guards", len(guard))
	}
	if sid, err := unix.Getsid(guard[0]); err != nil || sid != guard[0] {
		t.Errorf("the guard is in session %d, %v", sid, err)
	}
	if err := w.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if r := w.wait(); r.stderr != "" {
		t.Errorf("%v", r)
	}
	n.late()
	n.until("a way back", func() bool { return len(n.guards()) == 0 })
	if r := n.run("plan", "--detailed-exitcode", file); r.code != 0 {
		t.Errorf("%v", r)
	}
	if out, err := os.ReadFile(n.dir + "/where"); err != nil || strings.Count(string(out), w.code) != 1 {
		t.Errorf("%s: %v", out, err)
	}

	n.failed(n.as(4711, "web", "--write").wait(), exitPrivilege, "--write: only root can change interfaces")
	n.fails(exitUsage, "--confirm is for what the page applies", "web", "--confirm", "5s")
	n.fails(exitUsage, "--confirm 0s is no time", "web", "--write", "--confirm", "0s")
	n.ok("clear")
	n.clean()
}
