package listen

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for _, tt := range []struct{ text, want, err string }{
		{"unix:/run/e.sock", "unix:/run/e.sock", ""},
		{"127.0.0.1:9719", "127.0.0.1:9719", ""},
		{"127.8.0.1:0", "127.8.0.1:0", ""},
		{"[::1]:9719", "[::1]:9719", ""},
		{"[::ffff:127.0.0.1]:1", "127.0.0.1:1", ""},
		{"unix:e.sock", "", "from the root on: write it as unix:/run/vifshape.sock"},
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

// TestLimited: a connection more than there is room for is accepted when one of them ends.
func TestLimited(t *testing.T) {
	file := filepath.Join(t.TempDir(), "e.sock")
	socket, err := net.Listen("unix", file)
	if err != nil {
		t.Fatal(err)
	}
	l := &limited{socket, make(chan struct{}, 1), &idle{}}
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
	if _, err := Socket(file).Listen(0o600); err == nil || !strings.Contains(err.Error(), "somebody answers") {
		t.Errorf("it took the place of another: %v", err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Socket(file).Listen(0o600)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	again.Close()
	if err := os.WriteFile(file, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Socket(file).Listen(0o600); err == nil {
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
