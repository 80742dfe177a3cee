package agent

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/tctest"
)

// TestPeer holds that a peer is the process that connected, and none that has its
// number.
func TestPeer(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := tctest.Command(t, "petition", filepath.Join(dir, "s"))
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p, err := newPeer(conn)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if p.pid != c.Process.Pid || p.uid != uint32(os.Getuid()) {
		t.Errorf("process %d of user %d, not %d of %d", p.pid, p.uid, c.Process.Pid, os.Getuid())
	}
	now, err := uptime()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.same(now); err != nil {
		t.Errorf("itself: %v", err)
	}
	if err := p.same(time.Second); err == nil {
		t.Error("a process that has started later is the one that had connected")
	}
	other := *p
	other.uid++
	if err := other.same(now); err == nil {
		t.Error("a process of another user is the one that had connected")
	}
	in.Close()
	conn.Close()
	// Until it was waited for it has its number.
	for p.alive() == nil {
		time.Sleep(time.Millisecond)
	}
	if err := p.same(now); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("one that has ended: %v", err)
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}

// connected is the connection of a process. Those before it are of others, which had not got a number
// that was wanted.
func connected(t *testing.T, l *net.UnixListener, pid int) *net.UnixConn {
	t.Helper()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var cred *unix.Ucred
		if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		if int(cred.Pid) == pid {
			return c
		}
		c.Close()
	}
}

// TestPeerNumberReused holds that a process which has got the number of one that had
// connected is not taken for it.
func TestPeerNumberReused(t *testing.T) {
	tctest.RequireRoot(t)
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// next is a process with the number, if none was faster.
	next := func(pid int) *exec.Cmd {
		c := tctest.Command(t, "petition", filepath.Join(dir, "s"))
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", fmt.Append(nil, pid-1), 0); err != nil {
			t.Fatal(err)
		}
		in, err := c.StdinPipe()
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			in.Close()
			// It may have been refused.
			_ = c.Wait()
		})
		return c
	}
	for deadline := time.Now().Add(time.Minute); ; {
		first := tctest.Command(t, "petition", filepath.Join(dir, "s"))
		in, err := first.StdinPipe()
		if err == nil {
			err = first.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		pid := first.Process.Pid
		conn := connected(t, l, pid)
		defer conn.Close()
		if err := first.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = first.Wait() // it was killed
		in.Close()
		if next(pid).Process.Pid == pid {
			if p, err := newPeer(conn); err == nil {
				err = p.alive()
				p.close()
				if err == nil {
					t.Errorf("process %d is taken for the one that had connected", pid)
				}
			} else {
				t.Log(err)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the number did not come round")
		}
	}
}
