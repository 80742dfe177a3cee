package topview

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/clipperhouse/displaywidth"
	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cmd/internal/explain"
	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/hierarchy"
)

var update = flag.Bool("update", false, "write the screens of testdata anew")

const (
	kbit = hierarchy.Kbit
	mbit = hierarchy.Mbit
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// passing is what goes through a branch: a rate, of a ceiling, and what waits.
func passing(now, ceil hierarchy.Bandwidth, backlog uint64, drops, borrowed float64) observe.Passing {
	return observe.Passing{
		Limits: observe.Limits{Rate: ceil / 2, Ceil: ceil}, Bytes: uint64(now) * 7, Packets: uint64(now) / 500, Backlog: backlog,
		Since: &observe.Pace{Bandwidth: now, Packets: float64(now / 8000), Drops: drops, Borrowed: borrowed},
	}
}

// office is a tree that receives, too, and another interface; n looks later.
func office(n int) Look {
	branch := func(id int, path string, leaf bool, sends, receives observe.Passing) observe.LiveBranch {
		return observe.LiveBranch{ID: hierarchy.ClassID(id), Path: hierarchy.Path(path), Depth: strings.Count(path, "/"), Leaf: leaf, Sends: sends, Receives: receives}
	}
	eth0 := &observe.Live{Interface: "eth0", Policy: "/etc/policy.toml", Receives: true, Branches: []observe.LiveBranch{
		branch(1, "eth0", false, passing(62400*kbit, 100*mbit, 150_000, 12, 0), passing(20*mbit, 200*mbit, 0, 0, 0)),
		branch(2, "eth0/office", false, passing(51*mbit, 60*mbit, 150_000, 12, 0.4), passing(10*mbit, 200*mbit, 0, 0, 0)),
		branch(3, "eth0/office/calls", true, passing(900*kbit, 60*mbit, 0, 0, 0), passing(900*kbit, 200*mbit, 0, 0, 0)),
		branch(4, "eth0/office/work-with-a-long-name", true, passing(50100*kbit, 60*mbit, 150_000, 12, 0.41), passing(9*mbit, 200*mbit, 0, 0, 0)),
		branch(5, "eth0/guests", false, passing(11400*kbit, 20*mbit, 0, 0, 0), passing(10*mbit, 20*mbit, 0, 0, 0)),
		branch(6, "eth0/guests/alice", true, passing(11400*kbit, 20*mbit, 0, 0, 0), passing(10*mbit, 20*mbit, 4000, 0, 0)),
		branch(7, "eth0/guests/bob", true, passing(0, 20*mbit, 0, 0, 0), passing(0, 20*mbit, 0, 0, 0)),
		branch(8, "eth0/rest", true, passing(1200, 100*mbit, 0, 0, 0), passing(0, 200*mbit, 0, 0, 0)),
	}}
	if n > 1 { // bob is removed
		eth0.Branches = append(eth0.Branches[:6:6], eth0.Branches[7:]...)
	}
	return Look{At: noon.Add(time.Duration(n) * time.Second), Every: time.Second, Trees: []*observe.Live{
		eth0, {Interface: "wan0", Absent: true},
	}, Processes: map[hierarchy.Path]int{"eth0/office/calls": 3, "eth0/office/work-with-a-long-name": 21, "eth0/guests/alice": 1}}
}

// users is who sends by alice's branch. One has chosen a name that would do something to a
// terminal.
func alice() *explain.Evidence {
	level := explain.Port{{Path: "eth0", Ceil: 100 * mbit, Gets: 62 * mbit}, {Path: "eth0/guests", Ceil: 20 * mbit, Gets: 11 * mbit}, {Path: "eth0/guests/alice", Rate: 10 * mbit, Ceil: 20 * mbit, Gets: 13 * mbit, Leaf: true}}
	return &explain.Evidence{
		Path: "eth0/guests/alice", Sends: level, Samples: 4, Took: time.Second,
		Connections: []explain.Connection{
			{PID: 4711, Name: "\x1b]0;evil\a", Local: "[2001:db8::1]:40002", Remote: "[2001:db8::7]:443", Sends: 9 * mbit, Receives: 80 * kbit, RTT: 45 * time.Millisecond, Resent: 0.021, Waits: 120_000, Busy: 1, Unsent: 1},
			{PID: 4711, Name: "\x1b]0;evil\a", Local: "198.18.0.1:40003", Remote: "192.0.2.9:443", Sends: 2 * mbit, RTT: 5 * time.Millisecond},
			{PID: 12, Name: "ssh", Local: "198.18.0.1:40001", Remote: "192.0.2.7:22", Sends: 12 * kbit, Receives: 8 * kbit, RTT: 31 * time.Millisecond},
		},
		Datagrams: []explain.Datagram{{PID: 13, Name: "dnsmasq", Local: "0.0.0.0:53"}, {PID: 12, Name: "ssh", Local: "198.18.0.1:40004", Remote: "192.0.2.53:53", Waits: 900}},
		Processes: []explain.Process{{PID: 12, Name: "ssh"}, {PID: 13, Name: "dnsmasq"}, {PID: 14, Name: "眠る, 眠る, 眠る"}, {PID: 4711, Name: "\x1b]0;evil\a"}},
	}
}

// press is keys, one after another; what the last one asks for is given back.
func press(m *Model, keys ...string) (a Action) {
	for _, k := range keys {
		a = m.Key(k)
	}
	return a
}

// screens are situations, each with the keys that lead there.
func screens() []struct {
	name string
	look func(m *Model)
} {
	tree := func(keys ...string) func(m *Model) {
		return func(m *Model) {
			m.Show(office(0))
			press(m, keys...)
			m.Show(office(1))
		}
	}
	return []struct {
		name string
		look func(m *Model)
	}{
		{"tree", tree()},
		{"receiving", tree("d", "down", "down", "down")},
		{"sorted", tree("s")},
		{"waits", tree("s", "s", "s", "s", "u")},
		{"folded", tree("down", "-")},
		{"filtered", tree("/", "a", "l", "i", "enter", "u", "u")},
		{"frozen", tree("space")},
		{"help", tree("?")},
		{"ended", func(m *Model) { tree("end", "up", "up")(m); m.Show(office(2)) }},
		{"cap", tree("c", "1", "0", "m")},
		{"nocap", tree("down", "c")},
		{"nothing", func(m *Model) { m.Show(Look{At: noon, Every: time.Second}) }},
		{"open", func(m *Model) {
			tree("down", "down", "down", "down", "down", "enter")(m)
			m.Opened("eth0/guests/alice", alice(), nil)
			press(m, "down")
		}},
		{"move", func(m *Model) {
			tree("down", "down", "down", "down", "down", "enter")(m)
			m.Opened("eth0/guests/alice", alice(), nil)
			press(m, "down", "m")
		}},
	}
}

// TestScreens holds all screens at sizes of terminals, without colour.
func TestScreens(t *testing.T) {
	for _, x := range screens() {
		for _, size := range [][2]int{{80, 24}, {120, 40}, {40, 12}} {
			name := fmt.Sprintf("%s-%dx%d.txt", x.name, size[0], size[1])
			m := New(Style{}, Bits)
			m.Resize(size[0], size[1])
			x.look(m)
			lines := m.Lines()
			for i := range lines {
				lines[i] = strings.TrimRight(lines[i], " ")
			}
			got := strings.TrimRight(strings.Join(lines, "\n"), "\n") + "\n"
			file := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("%s (-want +got):\n%s", name, d)
			}
		}
	}
}

// TestFits: no line is wider than the terminal and no screen higher, whatever the size, and
// nothing of a name does anything to it.
func TestFits(t *testing.T) {
	for _, x := range screens() {
		for _, s := range []Style{{}, {ASCII: true}, {Terminal: true, Colour: true}} {
			m := New(s, Bits)
			x.look(m)
			for w := 1; w < 140; w += 3 {
				for h := 1; h < 30; h++ {
					m.Resize(w, h)
					lines := m.Lines()
					if len(lines) != h {
						t.Fatalf("%s at %dx%d has %d lines", x.name, w, h, len(lines))
					}
					for _, l := range lines {
						for _, look := range []string{plain, bold, reverse, red, green, yellow, cyan} {
							l = strings.ReplaceAll(l, look, "")
						}
						if n := displaywidth.String(l); n > w || strings.ContainsAny(l, "\x1b\a\n\t") {
							t.Fatalf("%s at %dx%d has a line of %d: %q", x.name, w, h, n, l)
						}
					}
				}
			}
		}
	}
}

// TestActions: what keys ask for.
func TestActions(t *testing.T) {
	limited := office(1)
	limited.Trees[0].Branches[7].Limit = "user:backup"
	for _, x := range []struct {
		name string
		keys string
		want Action
		says string
	}{
		{"quit", "q", Action{Quit: true}, ""},
		{"interrupt in a prompt", "/ x ctrl+c", Action{Quit: true}, ""},
		{"open", "down enter", Action{Open: "eth0/office"}, ""},
		{"shut", "down enter esc", Action{Shut: true}, ""},
		{"an interface that is not there", "end enter", Action{}, ""},
		{"cap an interface", "c 5 m b i t enter", Action{Cap: &Cap{"eth0", nil, "5mbit", "5mbit"}}, ""},
		{"each direction", "c PASTE:5mbit/20mbit enter", Action{Cap: &Cap{"eth0", nil, "5mbit", "20mbit"}}, ""},
		{"one of them", "c PASTE:/20mbit enter", Action{Cap: &Cap{"eth0", nil, "", "20mbit"}}, ""},
		{"to nothing", "c enter", Action{}, ""},
		{"no bandwidth", "c x y enter", Action{}, "xy"},
		{"thought better", "c 5 esc", Action{}, ""},
		{"a limit", "end up c PASTE:1mbit enter", Action{Cap: &Cap{"user:backup", []string{"eth0"}, "1mbit", "1mbit"}}, ""},
		{"take it away", "end up c enter", Action{Cap: &Cap{What: "user:backup", On: []string{"eth0"}}}, ""},
		{"a branch of the policy", "down c", Action{}, "the policy says what it may"},
		{"cap a process", "down enter SEEN c PASTE:1mbit enter", Action{Cap: &Cap{"pid:4711", []string{"eth0"}, "1mbit", "1mbit"}}, ""},
		{"move a process", "down enter SEEN m end up enter", Action{Move: &Move{4711, "eth0/rest"}}, ""},
		{"not after all", "down enter SEEN m esc enter", Action{Open: "eth0/office"}, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			m := New(Style{}, Bits)
			m.Show(limited)
			var got Action
			for _, k := range strings.Fields(x.keys) {
				if k == "SEEN" {
					m.Opened(m.open.path, alice(), nil)
					continue
				}
				if text, ok := strings.CutPrefix(k, "PASTE:"); ok {
					m.Paste(text)
					continue
				}
				got = m.Key(k)
			}
			if d := cmp.Diff(x.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if !strings.Contains(m.message, x.says) || x.says == "" && m.message != "" {
				t.Errorf("it says %q", m.message)
			}
		})
	}
}

// TestLingers: what has ended stays where it was for a while, and is not counted; the cursor
// stays on what it is on.
func TestLingers(t *testing.T) {
	m := New(Style{}, Bits)
	m.Show(office(0))
	press(m, "end", "up")
	on := func() string { return string(m.current().Path) }
	for n, want := range map[int]bool{2: true, 11: true, 13: false} {
		m := New(Style{}, Bits)
		m.Show(office(0))
		m.Show(office(2))
		m.Show(office(n))
		text := strings.Join(m.Lines(), "\n")
		if got := regexp.MustCompile(`bob +ended`).MatchString(text); got != want || !strings.Contains(text, "6 branches") {
			t.Errorf("after %d seconds:\n%s", n, text)
		}
	}
	if m.Show(office(2)); on() != "eth0/rest" {
		t.Errorf("the cursor is on %s", on())
	}
}

// TestBack: what was said of an interface that is back is said no more.
func TestBack(t *testing.T) {
	m := New(Style{}, Bits)
	m.Show(office(0))
	gone := office(1)
	gone.Trees = []*observe.Live{{Interface: "eth0", Err: errors.New("eth0 is not shaped by vifshape")}}
	m.Show(gone)
	if text := strings.Join(m.Lines(), "\n"); !strings.Contains(text, ">eth0: is not shaped by vifshape ") || !strings.Contains(text, "office") || strings.Contains(text, "wan0") {
		t.Errorf("gone:\n%s", text)
	}
	back := office(2)
	back.Trees = back.Trees[:1]
	m.Show(back)
	if text := strings.Join(m.Lines(), "\n"); strings.Contains(text, "not") || !strings.Contains(text, ">eth0  ") {
		t.Errorf("back:\n%s", text)
	}
}

// TestCount: processes that are counted later are added up as those that come with a look.
func TestCount(t *testing.T) {
	want, got := New(Style{}, Bits), New(Style{}, Bits)
	want.Show(office(0))
	want.Show(office(2))
	l := office(0)
	processes := l.Processes
	l.Processes = nil
	got.Show(l)
	l = office(2)
	l.Processes = nil
	got.Show(l)
	if text := strings.Join(got.Lines(), "\n"); !strings.Contains(text, "0%    -") || strings.Contains(text, "25") {
		t.Errorf("before they are counted:\n%s", text)
	}
	got.Count(processes)
	if d := cmp.Diff(want.Lines(), got.Lines()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestFrozen: nothing of a frozen screen changes, and then the newest look is there.
func TestFrozen(t *testing.T) {
	m := New(Style{}, Bits)
	m.Show(office(0))
	press(m, "space")
	was := m.Lines()
	m.Show(office(2))
	if d := cmp.Diff(was, m.Lines()); d != "" {
		t.Errorf("(-was +is):\n%s", d)
	}
	press(m, "space")
	if text := strings.Join(m.Lines(), "\n"); !strings.Contains(text, "12:00:02") {
		t.Error(text)
	}
}

// TestTable is what --once prints.
func TestTable(t *testing.T) {
	l := office(1)
	l.Trees = l.Trees[:1]
	l.Trees[0].Branches = l.Trees[0].Branches[4:7]
	got := Table(l, Style{}, Bits)
	want := `BRANCH      SENDS     SENT OF CEILING   CEILING  WAIT DROPS BORROW PROC
guests   11.4mbit   79.8MB ███▍·· 57%    20mbit     0     0     0%    1
  alice  11.4mbit   79.8MB ███▍·· 57%    20mbit     0     0     0%    1
  bob        0bit       0B ······  0%    20mbit     0     0     0%    0

BRANCH   RECEIVES RECEIVED OF CEILING   CEILING  WAIT DROPS BORROW PROC
guests     10mbit   70.0MB ███··· 50%    20mbit     0     0     0%    1
  alice    10mbit   70.0MB ███··· 50%    20mbit 3.2ms     0     0%    1
  bob        0bit       0B ······  0%    20mbit     0     0     0%    0
`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestNumbers(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0", time.Microsecond: "0.1ms", 1500 * time.Microsecond: "1.5ms", 42 * time.Millisecond: "42ms", 1200 * time.Millisecond: "1.2s", 500 * time.Second: "500s", time.Hour: ">999s"} {
		if got := brief(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0", 12.4: "12", 9999: "9999", 10000: "10.0k", 999_960: "1.0M", 2.5e9: "2.5G"} {
		if got := scaled(n); got != want {
			t.Errorf("%v is %q, want %q", n, got, want)
		}
	}
}

// BenchmarkShow is a look at ten thousand branches, as often as the screen has one.
func BenchmarkShow(b *testing.B) {
	l := Look{At: noon, Trees: []*observe.Live{{Interface: "eth0"}}}
	for i := range 100 {
		top := fmt.Sprintf("eth0/g%d", i)
		l.Trees[0].Branches = append(l.Trees[0].Branches, observe.LiveBranch{ID: 1, Path: hierarchy.Path(top), Depth: 1, Sends: passing(mbit, mbit, 0, 0, 0)})
		for j := range 99 {
			l.Trees[0].Branches = append(l.Trees[0].Branches, observe.LiveBranch{ID: 1, Path: hierarchy.Path(fmt.Sprintf("%s/b%d", top, j)), Depth: 2, Leaf: true, Sends: passing(hierarchy.Bandwidth(j)*kbit, mbit, 0, 0, 0)})
		}
	}
	for _, keys := range [][]string{nil, {"s"}} {
		b.Run(fmt.Sprintf("keys=%v", keys), func(b *testing.B) {
			m := New(Style{Terminal: true, Colour: true}, Bits)
			m.Show(l)
			press(m, keys...)
			for b.Loop() {
				m.Show(l)
				m.Lines()
			}
		})
	}
}
