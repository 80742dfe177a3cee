package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestTerminalJSON: what is written as JSON says the same.
func TestTerminalJSON(t *testing.T) {
	var out strings.Builder
	e := &env{stdout: words.NewTerminal(&out)}
	const name = "a\u202eb\u009b\x7f\x1b\U000e0041\n"
	if err := e.json(name); err != nil {
		t.Fatal(err)
	}
	var got string
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil || got != name || !printed(out.String()) {
		t.Errorf("%s: %q, %v", out.String(), got, err)
	}
}

// printed says whether a terminal shows all of s, and does nothing else.
func printed(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && r != '\t' && !strconv.IsPrint(r) })
}

// TestKernelTerminal: names that would do something to a terminal do not, wherever they
// come from: the policy and its file's name, an interface, a cgroup, a process.
func TestKernelTerminal(t *testing.T) {
	const evil = "\u202egpj\u009b31m"
	mount := tctest.Cgroup2Mount(t)
	n := newNetwork(t)
	tctest.RequireProgram(t, "sh")
	group := filepath.Join(mount, tctest.Name()+evil)
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Rmdir(group); err != nil {
			t.Error(err)
		}
	})
	file := n.policy("\x1b[31m"+evil+".toml", `version = 1
[interface.eth0]
rate = "100mbit"
[interface.eth0.a]
bind = ["cgroup:/`+filepath.Base(group)+`", "user:`+evil+`", "unit:`+evil+`.service"]
delegate = ["`+evil+`"]
[interface."b`+evil+`"]
rate = "1mbit"
`)
	bad := n.policy("bad.toml", "version = 1\n[interface.\"\\u001b[31meth0"+evil+"\".\"a\\u009b\"]\nrate = \"1"+evil+"\"\nbind = [\"unit:x\\u001b]0;pwn\\u0007"+evil+"\"]\n"+evil+" = 1\n")
	try := func(all ...[]string) {
		t.Helper()
		for _, args := range all {
			if r := n.run(args...); !printed(r.stdout + r.stderr) {
				t.Errorf("%q: %q %q", args, r.stdout, r.stderr)
			}
		}
	}
	try(
		[]string{"check", bad}, []string{"plan", bad}, []string{"apply", bad}, []string{"doctor", "--policy", bad},
		[]string{"check", "no\x1b[2J" + evil}, []string{"show", evil}, []string{"clear", evil}, []string{evil},
		[]string{"check", "--tree", file}, []string{"plan", file}, []string{"plan", "--tc", file}, []string{"plan", "--json", file}, []string{"apply", "--verbose", file},
	)
	p := n.start(n.command("run", "--level", "tag", "eth0/a", "--", "sh", "-c", `printf '\033]0;x\007' >/proc/$$/comm; sleep 1000; :`))
	t.Cleanup(func() {
		if err := n.kill(); err != nil {
			t.Error(err)
		}
		p.wait()
	})
	n.until("the name", func() bool {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(p.Process.Pid) + "/comm")
		return err == nil && strings.HasPrefix(string(b), "\x1b]0;x")
	})
	try(
		[]string{"show"}, []string{"show", "--json"}, []string{"bindings"}, []string{"bindings", "--json"}, []string{"ls"}, []string{"ls", "--json"},
		[]string{"doctor", "--policy", file}, []string{"doctor", "--json", "--policy", file}, []string{"run", "eth0/a", "--", "/no" + evil},
	)
	if out := n.ok("show"); !strings.Contains(out, `"\x1b]0;x\a"`) {
		t.Errorf("no process is shown:\n%s", out)
	}
}
