package client_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	. "github.com/vifshape/vifshape/cmd/client"
)

// narrow is a listener at which one connection waits to be accepted, and no other one can
// (unix_recvq_full, net/unix/af_unix.c, v6.12).
func narrow(t *testing.T, socket string) net.Listener {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: socket})
	}
	if err == nil {
		err = syscall.Listen(fd, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), socket)
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestFull holds that an agent whose socket has no room for one more connection is one that is
// busy: there is one, and it is asked again.
func TestFull(t *testing.T) {
	c := Client{Socket: filepath.Join(t.TempDir(), "agent.sock")}
	l := narrow(t, c.Socket)
	first, err := net.Dial("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := net.Dial("unix", c.Socket); !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("there is room for one more: %v", err)
	}
	if !c.Listens() {
		t.Error("nobody listens")
	}

	ctx, stop := context.WithTimeout(context.Background(), 250*time.Millisecond)
	defer stop()
	var no *Error
	if _, err := c.Pods(ctx, nil, nil); !errors.As(err, &no) || no.Code != Busy || ctx.Err() == nil {
		t.Errorf("%v, before its time: %v", err, ctx.Err() == nil)
	}

	go func() {
		time.Sleep(250 * time.Millisecond)
		for range 2 { // the first one asks nothing
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := bufio.NewReader(conn).ReadBytes('\n'); err == nil {
					_, _ = conn.Write([]byte(`{"version":1,"code":0,"places":[{"id":"1"}]}` + "\n"))
				}
			}()
		}
	}()
	places, err := c.Pods(context.Background(), nil, nil)
	if err != nil || len(places) != 1 || places[0].ID != "1" {
		t.Errorf("%v, %v", places, err)
	}
}
