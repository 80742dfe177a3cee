package escape

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// processes are ways to become another process.
func processes() []Attempt {
	const family = "processes"
	a := func(name, text string, do func(s *stage) error) Attempt {
		return Attempt{Name: name, Family: family, Text: text, do: do}
	}
	return []Attempt{
		a("child", "a child process", func(s *stage) error {
			if s.part == "" {
				return s.again("child", "inside", nil)
			}
			return s.plain()
		}),
		a("thread", "another thread", func(s *stage) error {
			done := make(chan error)
			go func() {
				runtime.LockOSThread()
				done <- s.plain()
			}()
			return <-done
		}),
		a("daemon", "an orphan in a session of its own", func(s *stage) error {
			switch s.part {
			case "":
				return s.again("daemon", "parent", nil)
			case "parent":
				c, err := s.child("daemon", fmt.Sprintf("orphan of %d", os.Getpid()))
				if err != nil {
					return err
				}
				c.Stdout = os.Stdout
				c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
				if err := c.Start(); err != nil {
					return call("start a child", err)
				}
				os.Exit(0) // the orphan speaks
			}
			for range 1000 {
				if s.part != fmt.Sprintf("orphan of %d", os.Getppid()) {
					return s.plain()
				}
				time.Sleep(time.Millisecond)
			}
			return errors.New("the parent did not end")
		}),
		a("memfd", "a program in memory (memfd_create)", func(s *stage) error {
			if s.part != "" {
				return s.udp(false, priority(uint32(s.Root)))
			}
			f, err := memfd()
			if err != nil {
				return err
			}
			defer f.Close()
			exe, err := os.Open("/proc/self/exe")
			if err != nil {
				return call("open /proc/self/exe", err)
			}
			defer exe.Close()
			if _, err := io.Copy(f, exe); err != nil {
				return call("write", err)
			}
			return s.again("memfd", "inside", func(c *exec.Cmd) {
				c.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
			})
		}),
		a("int80", "a 32-bit program, SO_PRIORITY", int80),
		a("subordinate-user", "another user's number, by a user namespace (newuidmap)", func(s *stage) error {
			if s.part == "" {
				return s.subordinate("subordinate-user")
			}
			return s.plain()
		}),
		a("setuid", "become root, SO_PRIORITY", func(s *stage) error {
			if err := syscall.Setuid(0); err != nil {
				return call("setuid 0", err)
			}
			return s.udp(false, priority(uint32(s.Root)))
		}),
	}
}

func memfd() (*os.File, error) {
	fd, err := unix.MemfdCreate("escape", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, call("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), "escape"), nil
}

// int80 runs a program of the 32-bit x86, whose system calls have other numbers.
func int80(s *stage) error {
	if runtime.GOARCH != "amd64" {
		return missing("the processor is no x86")
	}
	f, err := memfd()
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(s.elf32()); err != nil {
		return call("write", err)
	}
	err = exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())).Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() < 0:
		return call("int 0x80", errors.New("killed: the call was refused"))
	case errors.As(err, &exit):
		return call("int 0x80 setsockopt SO_PRIORITY", syscall.Errno(exit.ExitCode()))
	case err != nil:
		return call("execve", err)
	}
	s.Sent += packets
	return nil
}

// elf32 is that program: socket, setsockopt SO_PRIORITY, sendto until a counter is
// down; its exit status is an errno.
func (s *stage) elf32() []byte {
	const base, headers = 0x10000, 52 + 32
	build := func(data uint32) []byte {
		var c bytes.Buffer
		put := func(parts ...any) {
			for _, p := range parts {
				switch p := p.(type) {
				case int: // a byte
					c.WriteByte(byte(p))
				case uint32:
					_ = binary.Write(&c, binary.LittleEndian, p) // no error with a buffer
				}
			}
		}
		var fails []int
		// int 0x80; test eax, eax; js fail
		system := func() {
			put(0xcd, 0x80, 0x85, 0xc0, 0x78, 0)
			fails = append(fails, c.Len())
		}
		// the data: priority, counter, address, payload
		prio, count, addr, text := data, data+4, data+8, data+24
		// socket(AF_INET, SOCK_DGRAM, 0)
		put(0xb8, uint32(359), 0xbb, uint32(2), 0xb9, uint32(2), 0x31, 0xd2)
		system()
		// setsockopt(fd, SOL_SOCKET, SO_PRIORITY, &priority, 4)
		put(0x89, 0xc3, 0xb8, uint32(366), 0xb9, uint32(1), 0xba, uint32(12), 0xbe, prio, 0xbf, uint32(4))
		system()
		again := c.Len()
		// sendto(fd, payload, length, 0, &address, 16)
		put(0xb8, uint32(369), 0xb9, text, 0xba, uint32(len(payload)), 0x31, 0xf6, 0xbf, addr, 0xbd, uint32(16))
		system()
		put(0xff, 0x0d, count, 0x75, again-(c.Len()+8)) // dec [count]; jnz again
		put(0x31, 0xc0)
		end := c.Len()
		put(0xf7, 0xd8, 0x89, 0xc3, 0xb8, uint32(1), 0xcd, 0x80, 0xf4) // exit(-eax); hlt
		b := c.Bytes()
		for _, at := range fails {
			b[at-1] = byte(end - at)
		}
		return b
	}
	code := build(0)
	at := base + headers + uint32(len(code))
	code = build(at)
	code = binary.LittleEndian.AppendUint32(code, uint32(s.Other))
	code = binary.LittleEndian.AppendUint32(code, packets)
	code = append(code, unix.AF_INET, 0, byte(s.Port>>8), byte(s.Port))
	to := s.Far4.As4()
	code = append(append(append(code, to[:]...), make([]byte, 8)...), payload...)

	var e bytes.Buffer
	size := uint32(headers + len(code))
	e.WriteString("\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for _, v := range []any{
		uint16(2), uint16(3), uint32(1), uint32(base + headers), uint32(52), uint32(0), uint32(0),
		uint16(52), uint16(32), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(0), uint32(base), uint32(base), size, size, uint32(7), uint32(4096),
	} {
		_ = binary.Write(&e, binary.LittleEndian, v) // no error with a buffer
	}
	e.Write(code)
	return e.Bytes()
}
