package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// terminal is one of tmux, in which a program runs in the near namespace.
type terminal struct {
	n    *network
	tmux string
	sock string
}

// terminal starts a script in one.
func (n *network) terminal(width, height int, env []string, script string) *terminal {
	n.Helper()
	x := &terminal{n: n, tmux: tctest.RequireProgram(n, "tmux"), sock: filepath.Join(n.dir, "tmux.sock")}
	c := exec.CommandContext(n.Context(), x.tmux, "-u", "-S", x.sock, "-f", os.DevNull, "new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), script)
	c.Env = append(append(os.Environ(), "LC_ALL=C.UTF-8"), env...)
	if r := n.start(c).wait(); r.code != 0 {
		n.Fatal(r)
	}
	n.Cleanup(x.end)
	return x
}

// end ends it, with what runs in it.
func (x *terminal) end() {
	_ = exec.Command(x.tmux, "-S", x.sock, "kill-server").Run() // it may have ended
}

func (x *terminal) do(args ...string) string {
	x.n.Helper()
	out, err := exec.Command(x.tmux, append([]string{"-S", x.sock}, args...)...).CombinedOutput()
	if err != nil {
		x.n.Fatalf("tmux %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// press is keys by tmux's names.
func (x *terminal) press(keys ...string) {
	x.n.Helper()
	x.do(append([]string{"send-keys"}, keys...)...)
}

// shows waits until the screen has texts that match, all of them at once.
func (x *terminal) shows(all ...string) {
	x.n.Helper()
	var text string
	defer func() {
		if x.n.Failed() {
			x.n.Logf("the screen:\n%s", text)
		}
	}()
	x.n.until(strings.Join(all, ", "), func() bool {
		time.Sleep(20 * time.Millisecond) // a look at it starts a program
		text = x.do("capture-pane", "-p")
		for _, want := range all {
			if !regexp.MustCompile("(?m)" + want).MatchString(text) {
				return false
			}
		}
		return true
	})
}

// coloured says whether something on the screen is.
func (x *terminal) coloured() bool {
	x.n.Helper()
	return regexp.MustCompile(`\x1b\[(\d+;)*3[1-7]m`).MatchString(x.do("capture-pane", "-p", "-e"))
}

const topPolicy = `version = 1
[interface.eth0]
rate = "100mbit"
ingress = "200mbit"
[interface.eth0.web]
ceil = "2mbit"
[interface.eth0.web.api]
rate = "200kbit"
[interface.eth0.web.site]
rate = "200kbit"
[interface.eth0.mail]
ingress = { rate = "1mbit", ceil = "5mbit" }
`

// TestKernelTop: on a real terminal, of two sizes, the screen shows what real packets do, and who
// sends them; keys sort, filter, fold, freeze, limit and move.
func TestKernelTop(t *testing.T) {
	tctest.RequireProgram(t, "tmux")
	tctest.RequireLink(t, "ifb")
	n := newNetwork(t)
	n.ok("apply", n.policy("policy.toml", topPolicy))
	const port = 9000
	sink, err := lab.NewSink(t.Context(), n.Far, port)
	if err != nil {
		t.Fatal(err)
	}
	sender := n.sender("eth0/web/api", port, "4000000") // twice its ceiling
	on := func(t *testing.T) *network {
		n := *n
		n.TB = t
		return &n
	}
	t.Run("80x24", func(t *testing.T) {
		n := on(t)
		x := n.terminal(80, 24, []string{"NO_COLOR=1"}, n.bin+` top --interval 200ms; echo "over: $?"; exec sleep 1000`)
		defer x.end()
		x.shows(`^vifshape top: 1 interface, 5 branches, sending +every 200ms  \d\d:\d\d:\d\d$`, `^ BRANCH +SENDS +SENT OF CEILING +CEILING +WAIT DROPS BORROW PROC$`,
			`^>eth0 +[\d.]+mbit +[\d.]+[kM]B .*100mbit`, `^     api +[\d.]+[mk]bit .*█[^ ]* *\d+% +2mbit +[\d.]+m?s +\d+ +\d+% +1$`, `^   rest +0bit `, `^ \?:help  q:quit`)
		if x.coloured() {
			t.Error("something has a colour, and NO_COLOR is set")
		}
		x.press("d")
		x.shows(`branches, receiving `, `^ BRANCH +RECEIVES RECEIVED OF CEILING`, `^   mail .* 5mbit `)
		x.press("d", "/", "api", "Enter")
		x.shows(`with "api", sending`, `^     api `, `\A(.*\n){5}\n`)
		x.press("Escape")
		x.shows(`^   mail `) // else the next key may be taken for a part of this one
		x.press("Down", "-")
		x.shows(`^>  \+web `, `\A(.*\n){6}\n`)
		x.press("+", "s")
		x.shows(`most speed first`, `^>eth0/web/api `)
		x.press("t", "u")
		x.shows(`^[ >]    api +[\d.]+kB/s`)
		x.press("Space")
		x.shows(`FROZEN  \d\d:\d\d:\d\d$`)
		x.press("Space", "u", "u", "Home", "Down", "Down", "Enter")
		at := n.Far4.String()
		x.shows(`^eth0/web/api +every`, `^ sends [\d.]+[mk]bit of 2mbit`, `^ .*eth0/web/api`, fmt.Sprintf(`^>.*\[%d\] `, sender.Process.Pid), `^   udp `+regexp.QuoteMeta(at)+`:9000 \(:\d+\)`, `^ other than TCP, about +[\d.]+[mk]bit`)
		x.press("c", "800kbit", "Enter")
		x.shows(fmt.Sprintf("pid:%d is limited", sender.Process.Pid))
		x.press("Escape")
		x.shows(fmt.Sprintf(`^       pid-%d +[\d.]+kbit .* 800kbit .* 1$`, sender.Process.Pid))
		n.ok("unlimit", "--all")
		x.shows(fmt.Sprintf(`^       pid-%d +ended `, sender.Process.Pid))
		x.do("resize-window", "-x", "40", "-y", "12")
		x.shows(`\A5 branches, sending +(every 200ms  )?\d\d:\d\d:\d\d\n BRANCH +SENDS OF CEILING\n`)
		x.press("q")
		x.shows(`^over: 0$`)
	})
	t.Run("120x40", func(t *testing.T) {
		n := on(t)
		x := n.terminal(120, 40, nil, n.bin+` top --interval 200ms eth0/web; echo "over: $?"; exec sleep 1000`)
		defer x.end()
		x.shows(`^ BRANCH +SENDS .* PROC +RECEIVES OF CEILING +WAIT RECEIVED$`, `^>web .* 2mbit .* 1 +0bit `, `^   api `)
		if !x.coloured() {
			t.Error("nothing has a colour")
		}
		x.press("Down", "Enter")
		x.shows(fmt.Sprintf(`^>.*\[%d\] `, sender.Process.Pid))
		x.press("m", "Home", "Down", "Down")
		x.shows(fmt.Sprintf(`Enter: move .*\[%d\] to this branch`, sender.Process.Pid), `^>  site `)
		x.press("Enter")
		x.shows(fmt.Sprintf("process %d is in eth0/web/site", sender.Process.Pid), `^   api .* 0 +0bit`, `^>  site .* 1 +0bit`)
		x.press("C-c")
		x.shows(`^over: 0$`)
	})
	sender.in.Close()
	if r := sender.wait(); r.code != 0 {
		t.Error(r)
	}
	if got := sink.Count(port); got.Packets == 0 {
		t.Error("nothing arrived")
	}
	out := n.ok("top", "--once", "--interval", "200ms")
	if !strings.Contains(out, "\nBRANCH") || !strings.Contains(out, "RECEIVES RECEIVED") || strings.Count(out, "mail") != 2 {
		t.Error(out)
	}
	n.fails(exitUsage, "top takes a terminal", "top")
	n.fails(exitError, "eth0/wed", "top", "--once", "eth0/wed")
	n.public()
	if r := n.as(65534, "top", "--once", "--interval", "200ms").wait(); r.code != 0 || strings.Count(r.stdout, "mail") != 2 {
		t.Errorf("as nobody: %v", r)
	}
}
