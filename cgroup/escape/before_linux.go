package escape

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// What is known of what a program gets at its start, and of vifshape's own files.
const (
	handedWhy = "what is opened for a program is handed to it on purpose; level lock does not start it"
	stateWhy  = "the files that vifshape keeps are those of uid 0, unless level lock guards them"
)

// before are ways over what was opened before the border was put up.
func before() []Attempt {
	const family = "what was there before"
	a := func(name, text string, ready func(p *Place) (*os.File, func(), error), do func(s *stage) error, holes ...Hole) Attempt {
		return Attempt{Name: name, Family: family, Text: text, Holes: holes, ready: ready, do: do}
	}
	given := func(flags int, path func(p *Place) string) func(p *Place) (*os.File, func(), error) {
		return func(p *Place) (*os.File, func(), error) {
			f, err := os.OpenFile(path(p), flags, 0)
			if errors.Is(err, os.ErrNotExist) {
				return nil, nil, nil // the attempt says so
			}
			return f, nil, err
		}
	}
	procs := func(p *Place) string {
		if len(p.OtherDirs) == 0 {
			return ""
		}
		return filepath.Join(p.OtherDirs[len(p.OtherDirs)-1], "cgroup.procs")
	}
	// through moves by the other cgroup's file, found from a directory.
	through := func(s *stage, dir int, up string) error {
		if len(s.OtherDirs) == 0 {
			return missing("no hierarchy of cgroups with the branch is mounted")
		}
		for _, d := range s.OtherDirs {
			fd, err := unix.Openat(dir, filepath.Join(up, d, "cgroup.procs"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return call("openat cgroup.procs", err)
			}
			_, err = unix.Write(fd, []byte("0"))
			unix.Close(fd)
			if err != nil {
				return call("write cgroup.procs", err)
			}
		}
		return s.plain()
	}
	written := func(fd int) func(s *stage) error {
		return func(s *stage) error {
			if len(s.OtherDirs) == 0 {
				return missing("no hierarchy of cgroups with the branch is mounted")
			}
			at := fd
			if fd < 0 {
				var err error
				if at, err = unix.Open("/proc/self/fd/0", unix.O_WRONLY|unix.O_CLOEXEC, 0); err != nil {
					return call("open /proc/self/fd/0", err)
				}
				defer unix.Close(at)
			}
			if _, err := unix.Write(at, []byte("0")); err != nil {
				return call("write cgroup.procs", err)
			}
			return s.plain()
		}
	}
	root := Hole{Level: Tag, User: Root, Why: moveWhy}
	handed := Hole{Level: Tag, Why: handedWhy}
	return []Attempt{
		a("stdin-directory", "a directory as standard input, then move", given(os.O_RDONLY, func(*Place) string { return "/" }),
			func(s *stage) error { return through(s, 0, ".") }, root),
		a("stdin-path", "the other cgroup's file as standard input (O_PATH)", given(unix.O_PATH, procs), written(-1), root),
		a("stdin-control", "the same, opened for writing", given(os.O_WRONLY, procs), written(0), handed),
		a("stdin-setting", "a setting of the kernel as standard input", given(os.O_RDONLY, func(*Place) string { return "/proc/sys/net/ipv4/ip_forward" }),
			func(s *stage) error {
				fd, err := unix.Open("/proc/self/fd/0", unix.O_WRONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					return call("open /proc/self/fd/0", err)
				}
				defer unix.Close(fd)
				if _, err := unix.Write(fd, []byte("0")); err != nil {
					return call("write ip_forward", err)
				}
				// what can be written there has the kernel send, and start programs
				_, err = s.ask("send")
				s.Sent += packets
				return err
			}, Hole{Level: Tag, User: Root, Why: "the kernel's settings are those of uid 0"}),
		a("stdin-handle", "outside directories by a file that is standard input (open_by_handle_at)", given(os.O_RDONLY, func(*Place) string { return os.DevNull }),
			func(s *stage) error {
				h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Dir(os.DevNull), 0)
				if errors.Is(err, unix.EOPNOTSUPP) {
					return missing("the devices' file system has no handles")
				}
				if err != nil {
					return call("name_to_handle_at", err)
				}
				dir, err := unix.OpenByHandleAt(0, h, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
				if err != nil {
					return call("open_by_handle_at", err)
				}
				defer unix.Close(dir)
				return through(s, dir, "..")
			}, root),
	}
}

// state are changes of what vifshape itself goes by.
func state() []Attempt {
	const family = "vifshape's own files"
	a := func(name, text string, do func(s *stage) error) Attempt {
		return Attempt{Name: name, Family: family, Text: text, Spoils: true, do: func(s *stage) error {
			if err := do(s); err != nil {
				return err
			}
			return s.plain()
		}, Holes: []Hole{{Level: Tag, User: Root, Why: stateWhy}}}
	}
	return []Attempt{
		a("record-rewrite", "another class for its branch, in the record", func(s *stage) error {
			b, err := os.ReadFile(s.Record)
			if err != nil {
				return call("read the record", err)
			}
			var r map[string]any
			if err := json.Unmarshal(b, &r); err != nil {
				return err
			}
			ids, _ := r["ids"].(map[string]any)
			minors, _ := ids["minors"].(map[string]any)
			for k, v := range minors {
				if v == float64(s.Own&0xffff) {
					minors[k] = s.Other & 0xffff
				} else if v == float64(s.Other&0xffff) {
					minors[k] = s.Own & 0xffff
				}
			}
			if b, err = json.Marshal(r); err != nil {
				return err
			}
			if err := os.WriteFile(s.Record+".new", b, 0o644); err != nil {
				return call("write the record", err)
			}
			return call("rename the record", os.Rename(s.Record+".new", s.Record))
		}),
		a("record-fifo", "a FIFO where the agent reads a record", func(s *stage) error {
			return call("mknod", unix.Mkfifo(filepath.Join(filepath.Dir(s.Record), "esc0.json"), 0o644))
		}),
		a("lock-held", "the lock of all who change the tree, held for good", func(s *stage) error {
			f, err := os.Open(s.Lock)
			if err != nil {
				return call("open the lock", err)
			}
			defer f.Close()
			if s.part != "" {
				return unix.Pause() // until it is killed
			}
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
				return call("flock", err)
			}
			c, err := s.child("lock-held", "holder")
			if err != nil {
				return err
			}
			c.Stderr, c.ExtraFiles = nil, []*os.File{f} // the lock is the open file's, whoever has it
			return call("start a child", c.Start())
		}),
	}
}

// tunDevice attaches to a tun device, or makes it.
func tunDevice(name string) (*os.File, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, missing("there is no /dev/net/tun")
	}
	if err != nil {
		return nil, call("open /dev/net/tun", err)
	}
	r, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, r); err != nil {
		return nil, errors.Join(call("ioctl TUNSETIFF", err), f.Close())
	}
	return f, nil
}

// persistent makes a tun device that stays, belongs to nobody, and whose packets are
// forwarded. Where there is no tun, the attempt says so.
func persistent(*Place) (*os.File, func(), error) {
	f, err := tunDevice(persistentTun)
	if err != nil {
		var m missing
		if errors.As(err, &m) {
			err = nil
		}
		return nil, nil, err
	}
	keep := func(v int) error { return unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, v) }
	err = keep(1)
	if err == nil {
		err = up(persistentTun)
	}
	if err == nil {
		err = os.WriteFile(fmt.Sprintf("/proc/sys/net/ipv4/conf/%s/forwarding", persistentTun), []byte("1"), 0)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, nil, err
	}
	return nil, func() {
		if f, err := tunDevice(persistentTun); err == nil {
			_ = unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 0) // else it goes with the namespace
			f.Close()
		}
	}, nil
}

const persistentTun = "esc2"

// subordinate plays a part as a user whose number is another's outside, as newuidmap
// gives them to users.
func (s *stage) subordinate(name string) error {
	return s.again(name, "inside", func(c *exec.Cmd) {
		cloneFlags(unix.CLONE_NEWUSER)(c)
		c.SysProcAttr.UidMappings[0].HostID = 100_000
		c.SysProcAttr.Credential = &syscall.Credential{NoSetGroups: true} // root, inside
	})
}
