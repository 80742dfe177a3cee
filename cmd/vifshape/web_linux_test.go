package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/google/go-cmp/cmp"
)

// forward lets this machine's browsers connect to a place that they cannot reach, as ssh -L does,
// until the test ends. It is the address.
func (n *network) forward(dial func() (net.Conn, error)) string {
	n.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.Fatal(err)
	}
	var all sync.WaitGroup
	n.Cleanup(all.Wait)
	n.Cleanup(func() { l.Close() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				to, err := dial()
				if err != nil { // nobody listens
					return
				}
				all.Go(func() {
					_, _ = io.Copy(to, c)
					to.Close()
				})
				_, _ = io.Copy(c, to)
			})
		}
	})
	return l.Addr().String()
}

// web starts a server of the page, and waits until it has said where it is. What is returned ends it.
func (n *network) web(args ...string) (where string, end func()) {
	n.Helper()
	lines, r := n.webServer(1, args...)
	return lines[0], func() { n.Helper(); r.ends() }
}

// webServer is a server of the page that has said so many lines.
func (n *network) webServer(lines int, args ...string) ([]string, *running) {
	n.Helper()
	c := n.command(append([]string{"web"}, args...)...)
	file := filepath.Join(n.dir, "where")
	out, err := os.Create(file)
	if err != nil {
		n.Fatal(err)
	}
	defer out.Close()
	c.Stdout = out
	r := n.start(c)
	said := ""
	n.until("the server", func() bool {
		b, err := os.ReadFile(file)
		said = string(b)
		return err == nil && strings.Count(said, "\n") == lines
	})
	return strings.Split(strings.TrimSpace(said), "\n"), r
}

// ends ends a server, which has nothing to say to that, and had nothing before.
func (r *running) ends() {
	r.n.Helper()
	if err := r.Process.Signal(syscall.SIGTERM); err != nil {
		r.n.Error(err)
	}
	if out := r.wait(); out.code != 0 || out.stderr != "" {
		r.n.Errorf("the server: %v", out)
	}
}

const webPolicy = `version = 1
[interface.eth0]
rate = "8mbit"
ingress = "16mbit"
[interface.eth0.web]
ceil = "4mbit"
[interface.eth0.web.api]
rate = "800kbit"
[interface.eth0.rest]
rate = "80kbit"
ceil = "80kbit"
qdisc = { kind = "bfifo", limit = "3kb" }
`

// sends sends until the test ends.
func (n *network) sends(to netip.Addr) {
	n.Helper()
	var c net.Conn
	if err := n.Near.Do(func() (err error) {
		c, err = net.Dial("udp", netip.AddrPortFrom(to, 9).String())
		return err
	}); err != nil {
		n.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		defer c.Close()
		for {
			for range 10 {
				_, _ = c.Write(make([]byte, 1000)) // nobody listens, of which the next one is told
			}
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	n.Cleanup(func() {
		close(stop)
		<-stopped
	})
}

// TestKernelWeb: a real browser shows what the tree does, asks nobody else for anything, has
// nothing to object, and goes on when the server was away.
func TestKernelWeb(t *testing.T) {
	b := newBrowser(t)
	n := newNetwork(t)
	n.ok("apply", n.policy("policy.toml", webPolicy))
	n.sends(n.Far4)
	socket, end := n.web()
	defer func() { end() }()
	at := n.forward(func() (net.Conn, error) { return net.Dial("unix", strings.TrimPrefix(socket, "unix:")) })
	place := "http://" + at + "/"
	b.see(1280, 800, "light")
	b.do(chromedp.Navigate(place))

	t.Run("tree", func(t *testing.T) { b.tree(t) })
	t.Run("keys", func(t *testing.T) { b.keys(t) })
	t.Run("looks", func(t *testing.T) { b.looks(t) })
	t.Run("plan", func(t *testing.T) { b.plan(t) })
	t.Run("away", func(t *testing.T) {
		b.mayFail(true)
		end()
		b.until(`document.getElementById("state").className === "lost"`)
		_, end = n.web()
		b.until(`document.getElementById("state").className === "live"`)
		b.mayFail(false)
		b.until(`window.stream.readyState === 1`)
		value[bool](b, `window.ticks = 0, window.stream.addEventListener("tick", () => window.ticks++), true`)
		b.until(`window.ticks >= 2`)
		if got := value[string](b, `document.getElementById("path").textContent`); got != "eth0/rest" {
			t.Errorf("then %q is chosen", got)
		}
	})
	t.Run("waits", func(t *testing.T) { b.waits(n) })
	t.Run("day", func(t *testing.T) { b.day(t) })
	b.wellBehaved(place)
}

// tree: all branches are there, with what goes through them; the one that is chosen has a graph
// with its ceiling.
func (b *browser) tree(t *testing.T) {
	const names = `[...document.querySelectorAll(".row:not([hidden]) .name")].map(e => e.textContent).join(" ")`
	b.until(names + ` === "eth0 web api rest"`)
	b.until(`document.getElementById("state-text").textContent === "live"`)
	// The last is sent more than it may.
	b.until(`/^↑.[0-9.]+.kbit/.test(document.querySelectorAll(".row .numbers")[3].textContent)`)
	b.do(chromedp.Click(chromedp.CSS(".row:nth-child(4)")))
	b.until(`document.getElementById("path").textContent === "eth0/rest"`)
	b.until(`document.getElementById("facts").innerText.replace(/\s+/g, " ") === "Guaranteed 80 kbit/s Ceiling 80 kbit/s Priority 3"`)
	for id, colour := range map[string]string{"rate": "--ceiling", "delay": "--send", "drops": "--bad"} {
		b.until(fmt.Sprintf(`(() => {
			const c = document.querySelector("#%s canvas"), [r, g, b] = getComputedStyle(document.documentElement).getPropertyValue("%s").match(/\w\w/g).map(x => parseInt(x, 16));
			const copy = Object.assign(document.createElement("canvas"), { width: c.width, height: c.height }).getContext("2d", { willReadFrequently: true });
			copy.drawImage(c, 0, 0);
			const p = copy.getImageData(0, 0, c.width, c.height).data;
			let n = 0;
			for (let i = 0; i < p.length; i += 4) if (Math.abs(p[i] - r) + Math.abs(p[i+1] - g) + Math.abs(p[i+2] - b) < 60 && p[i+3] > 200) n++;
			return n > 20;
		})()`, id, colour))
	}
	b.until(`/^[0-9.]+.kbit.s · [0-9]+.%$/.test(document.getElementById("rate-now").textContent)`)
	b.until(`/packets.s$/.test(document.getElementById("drops-now").textContent)`)
	b.until(`document.getElementById("sentence").className === "" && document.getElementById("sentence").textContent.includes("eth0/rest")`)
	b.until(`document.getElementById("figures").children.length > 0`)
	b.do(chromedp.Click(chromedp.CSS("#receive")))
	b.until(`document.getElementById("facts").innerText.includes("16") && document.getElementById("receive").getAttribute("aria-pressed") === "true"`)
	b.do(chromedp.Click(chromedp.CSS("#send")))
}

// keys move in the tree, and search.
func (b *browser) keys(t *testing.T) {
	b.do(chromedp.Evaluate[chromedp.Void](`document.getElementById("tree").focus()`))
	chosen := func() string {
		return value[string](b, `new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(
			document.getElementById(document.getElementById("tree").getAttribute("aria-activedescendant")).title + " " + document.getElementById("path").textContent))))`)
	}
	var got []string
	for _, k := range []string{kb.Home, kb.ArrowDown, kb.ArrowRight, kb.ArrowRight, kb.ArrowLeft, kb.ArrowUp, kb.ArrowUp, kb.End, kb.ArrowDown} {
		b.do(chromedp.KeyEvent(k))
		got = append(got, chosen())
	}
	var want []string
	for _, p := range []string{"eth0", "eth0/web", "eth0/web/api", "eth0/web/api", "eth0/web", "eth0", "eth0", "eth0/rest", "eth0/rest"} {
		want = append(want, p+" "+p)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	b.do(chromedp.KeyEvent("/"), chromedp.KeyEvent("ap"))
	b.until(`[...document.querySelectorAll(".row:not([hidden])")].map(e => e.title).join() === "eth0/web/api"`)
	b.do(chromedp.KeyEvent(kb.Escape))
	b.until(`document.querySelectorAll(".row:not([hidden])").length === 4 && document.activeElement.id === "tree"`)
}

// looks: light and dark, wide and narrow, where nothing sticks out.
func (b *browser) looks(t *testing.T) {
	ground := map[string]string{}
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{1280, 360} {
			b.see(width, 800, scheme)
			b.until(fmt.Sprintf(`Math.abs(document.querySelector("#rate canvas").getBoundingClientRect().right - document.getElementById("rate").getBoundingClientRect().right) < 2 && innerWidth === %d`, width))
			if w := value[int64](b, "document.documentElement.scrollWidth"); w > width {
				t.Errorf("it is %d wide, in a window of %d", w, width)
			}
			ground[scheme] = value[string](b, `getComputedStyle(document.body).backgroundColor`)
			b.picture(fmt.Sprintf("tree-%s-%d", scheme, width))
		}
	}
	if ground["light"] == ground["dark"] {
		t.Errorf("light and dark are both %s", ground["dark"])
	}
}

// plan: a policy that is pasted in gives its plan, or its mistakes.
func (b *browser) plan(t *testing.T) {
	b.do(chromedp.Click(chromedp.CSS("#to-plan")))
	for _, tt := range []struct{ text, class, words string }{
		{strings.Replace(webPolicy, "800kbit", "900kbit", 1), "", "~ class  eth0/web/api"},
		{"version = 1\n[interface.eth0]\nrat = 1\n", "wrong", "did you mean \"rate\"?"},
		{"version = 1\n[interface.\"<img src=x onerror=alert(1)>\"]\nrate = \"1mbit\"\n", "wrong", "<img src=x onerror=alert(1)>"},
	} {
		b.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`document.getElementById("policy").value = %q`, tt.text)), chromedp.Click(chromedp.CSS("#ask-plan")))
		b.until(fmt.Sprintf(`!document.getElementById("ask-plan").disabled && document.getElementById("plan").className === %q && document.getElementById("plan").textContent.includes(%q)`, tt.class, tt.words))
		if n := value[int](b, `document.querySelectorAll("img").length`); n != 0 {
			t.Error("a name became an element")
		}
		for _, width := range []int64{360, 1280} {
			b.see(width, 800, "light")
			if w := value[int64](b, "document.documentElement.scrollWidth"); w > width {
				t.Errorf("it is %d wide, in a window of %d", w, width)
			}
		}
		if tt.class == "" {
			b.picture("plan")
		}
	}
	b.do(chromedp.Click(chromedp.CSS("#to-tree")))
}

// waits: that somebody's apply waits to be confirmed is shown, and what became of it; this page
// cannot do anything about it.
func (b *browser) waits(n *network) {
	n.ok("apply", "--confirm", "2h", n.policy("policy.toml", strings.Replace(webPolicy, "800kbit", "900kbit", 1)))
	b.until(`/^eth0 goes back in 1(19|20).min( [0-9]+.s)? to what it was\.$/.test(document.getElementById("waits-what").textContent)`)
	b.until(`/ was applied by .*: .vifshape confirm. keeps what was applied/.test(document.getElementById("waits-more").textContent) && document.getElementById("waits-do").hidden`)
	b.see(1280, 800, "light")
	b.picture("waits-light")
	n.ok("confirm")
	b.until(`document.getElementById("waits-what").textContent === "What was applied to eth0 is kept."`)
	b.do(chromedp.Click(chromedp.CSS("#waits-close")))
}

// day: what a page keeps does not grow while it is open. More events than it keeps are
// simulated, of a tree with more branches than the real one.
func (b *browser) day(t *testing.T) {
	const simulate = `(async (first, n) => {
		const t = %d + 1000 * first;
		for (let i = 0; i < n; i++) {
			const rows = [];
			for (let r = 0; r < 100; r++) rows.push([r, 1000 * (i + r), i %% 50, i %% 3, i %% 7, 100 * r]);
			stream.dispatchEvent(new MessageEvent("tick", { data: JSON.stringify({ seq: first + i, t: t + 1000 * i, d: 1000, rows: rows }), lastEventId: "x-" + i }));
			if (i %% 20 === 19) await new Promise(requestAnimationFrame);
		}
		return document.getElementById("drops-now").textContent;
	})(%d, %d)`
	t0 := time.Now().Add(time.Hour).UnixMilli()
	const warm, more = 1200, 2000
	value[string](b, fmt.Sprintf(simulate, t0, 0, warm))
	before, elements := b.heap(), value[int](b, `document.querySelectorAll("*").length`)
	if got, want := value[string](b, fmt.Sprintf(simulate, t0, warm, more)), fmt.Sprintf("%d\u202fpackets/s · %d\u202fpackets/s marked", (more-1)%3, (more-1)%7); got != want {
		t.Errorf("%q are dropped and marked then, not %q", got, want)
	}
	after := b.heap()
	t.Logf("the heap has %d kB after %d events, and %d kB after %d more", before/1000, warm, after/1000, more)
	if grown := after - before; grown > 2_000_000 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	if n := value[int](b, `document.querySelectorAll("*").length`); n != elements {
		t.Errorf("there are %d elements, and were %d", n, elements)
	}
}

// TestKernelWebPort: at a port a browser gets in by the link, keeps the session, and shows the
// token to nobody.
func TestKernelWebPort(t *testing.T) {
	b := newBrowser(t)
	n := newNetwork(t)
	n.ok("apply", n.policy("policy.toml", webPolicy))
	link, end := n.web("--listen", "127.0.0.1:8719")
	defer end()
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = n.forward(func() (c net.Conn, err error) {
		failed := n.Near.Do(func() error {
			c, err = net.Dial("tcp", "127.0.0.1:8719")
			return nil
		})
		return c, errors.Join(failed, err)
	})
	b.do(chromedp.Navigate(u.String()))
	b.until(`document.getElementById("state-text").textContent === "live" && document.querySelectorAll(".row").length === 4`)
	if got := value[string](b, `location.search + document.cookie`); got != "" {
		t.Errorf("the page knows %q", got)
	}
	u.RawQuery = ""
	b.do(chromedp.Navigate(u.String()))
	b.until(`document.querySelectorAll(".row").length === 4`)
	b.wellBehaved("http://" + u.Host + "/")
}
