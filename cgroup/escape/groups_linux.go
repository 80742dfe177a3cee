package escape

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy/bind"
)

// What is known of cgroups.
const moveWhy = "cgroup files are those of uid 0: root leaves its cgroup unless level lock keeps it there"

// groups are the ways into another cgroup.
func groups() []Attempt {
	const family = "cgroups"
	root := []Hole{{Level: Tag, User: Root, Why: moveWhy}}
	g := func(name, text string, holes []Hole, do func(s *stage) error) Attempt {
		return Attempt{Name: name, Family: family, Text: text, Holes: holes, do: func(s *stage) error {
			if len(s.OtherDirs) == 0 {
				return missing("no hierarchy of cgroups with the branch is mounted")
			}
			return do(s)
		}}
	}
	return []Attempt{
		g("cgroup-procs", "move by cgroup.procs", root, func(s *stage) error { return s.move("cgroup.procs", s.OtherDirs...) }),
		g("cgroup-threads", "move a thread by cgroup.threads or tasks", root, func(s *stage) error {
			for _, name := range []string{"tasks", "cgroup.threads"} {
				if _, err := os.Stat(filepath.Join(s.OtherDirs[0], name)); err == nil {
					return s.move(name, s.OtherDirs...)
				}
			}
			return missing("there are neither cgroup.threads nor tasks")
		}),
		g("cgroup-child", "move below its own cgroup", nil, func(s *stage) error {
			d := filepath.Join(s.OwnDirs[0], "child")
			if s.part != "" {
				return s.move("cgroup.procs", d)
			}
			if err := os.Mkdir(d, 0o755); err != nil {
				return call("mkdir", err)
			}
			defer os.Remove(d)
			return s.again("cgroup-child", "inside", nil)
		}),
		g("cgroup-fresh-mount", "move through a fresh mount of the hierarchy", root, func(s *stage) error {
			if err := private(); err != nil {
				return err
			}
			return s.freshMount()
		}),
		g("cgroup-bind-mount", "move through a bind mount of the other cgroup", root, func(s *stage) error {
			if err := private(); err != nil {
				return err
			}
			if err := unix.Mount(s.OtherDirs[0], "/tmp", "", unix.MS_BIND, ""); err != nil {
				return call("mount MS_BIND", err)
			}
			return s.move("cgroup.procs", "/tmp")
		}),
		g("cgroup-remount", "remount the hierarchy writable", root, func(s *stage) error {
			if err := private(); err != nil {
				return err
			}
			at := mountOf(s.OtherDirs[0])
			if err := unix.Mount("none", at, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
				return call("mount MS_REMOUNT", err)
			}
			return s.move("cgroup.procs", s.OtherDirs...)
		}),
		g("cgroup-proc-root", "move through an outsider's /proc/PID/root", root, func(s *stage) error {
			return s.move("cgroup.procs", filepath.Join(fmt.Sprintf("/proc/%d/root", s.Outsider.PID), s.OtherDirs[0]))
		}),
		g("cgroup-proc-cwd", "move through an outsider's /proc/PID/cwd", root, func(s *stage) error {
			return s.move("cgroup.procs", fmt.Sprintf("/proc/%d/cwd/%s%s", s.Outsider.PID, strings.Repeat("../", 20), s.OtherDirs[0]))
		}),
		g("cgroup-namespace", "new cgroup namespace, then move", root, func(s *stage) error {
			if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
				return call("unshare CLONE_NEWCGROUP", err)
			}
			return s.move("cgroup.procs", s.OtherDirs...)
		}),
		g("cgroup-user-namespace", "new user, mount and cgroup namespaces, then move", nil, func(s *stage) error {
			if s.part == "" {
				return s.again("cgroup-user-namespace", "inside", cloneFlags(unix.CLONE_NEWUSER|unix.CLONE_NEWNS|unix.CLONE_NEWCGROUP))
			}
			return s.freshMount()
		}),
		g("cgroup-handle", "the other cgroup's file by its number (open_by_handle_at)", root, func(s *stage) error {
			for _, h := range s.Handles {
				m, err := unix.Open(h.Mount, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					return call("open", err)
				}
				defer unix.Close(m)
				fd, err := unix.OpenByHandleAt(m, unix.NewFileHandle(h.Type, h.Bytes), unix.O_WRONLY|unix.O_CLOEXEC)
				if err != nil {
					return call("open_by_handle_at", err)
				}
				defer unix.Close(fd)
				if _, err := unix.Write(fd, []byte("0")); err != nil {
					return call("write cgroup.procs", err)
				}
			}
			return s.plain()
		}),
		g("cgroup-clone3", "born in another cgroup (clone3)", []Hole{{Level: Tag, User: Root, Ways: v2Ways, Why: moveWhy}}, func(s *stage) error {
			if s.part != "" {
				return s.plain()
			}
			fd, err := unix.Open(s.OtherDirs[0], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return call("open", err)
			}
			defer unix.Close(fd)
			return s.again("cgroup-clone3", "inside", func(c *exec.Cmd) {
				c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
			})
		}),
		g("cgroup-setns", "an outsider's cgroup namespace, then move", root, func(s *stage) error {
			if err := s.enter("cgroup", unix.CLONE_NEWCGROUP); err != nil {
				return err
			}
			return s.move("cgroup.procs", s.OtherDirs...)
		}),
		g("cgroup-setns-mount", "an outsider's mount namespace, then move", root, func(s *stage) error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return call("unshare CLONE_FS", err)
			}
			if err := s.enter("mnt", unix.CLONE_NEWNS); err != nil {
				return err
			}
			return s.move("cgroup.procs", s.OtherDirs...)
		}),
		g("net-cls-tag", "change the tag in net_cls.classid", []Hole{{Level: Tag, User: Root, Ways: tagWays, Why: moveWhy}}, func(s *stage) error {
			file := filepath.Join(s.OwnDirs[len(s.OwnDirs)-1], "net_cls.classid")
			if _, err := os.Stat(file); err != nil {
				return missing("the branch has no net_cls tag")
			}
			if err := os.WriteFile(file, fmt.Appendf(nil, "%d", uint32(s.Other)), 0); err != nil {
				return call("write net_cls.classid", err)
			}
			return s.plain()
		}),
	}
}

var (
	v2Ways  = []bind.Way{bind.WayBPF, bind.WayNft}
	tagWays = []bind.Way{bind.WayNetCls, bind.WayNetClsNft, bind.WayClsCgroup}
)

// move1 moves this process.
func (s *stage) move1(file, dir string) error {
	pid := fmt.Sprint(os.Getpid())
	if file != "cgroup.procs" {
		pid = fmt.Sprint(unix.Gettid())
	}
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return call("open "+file, err)
	}
	defer f.Close()
	_, err = f.WriteString(pid)
	return call("write "+file, err)
}

// move moves this process and sends from where it is then.
func (s *stage) move(file string, dirs ...string) error {
	for _, d := range dirs {
		if err := s.move1(file, d); err != nil {
			return err
		}
	}
	return s.plain()
}

// freshMount mounts the hierarchy again, over /tmp, and moves there.
func (s *stage) freshMount() error {
	for i, other := range s.OtherDirs {
		at := mountOf(other)
		rel, err := filepath.Rel(at, other)
		if err != nil {
			return err
		}
		kind, data := "cgroup2", ""
		if _, err := os.Stat(filepath.Join(s.OwnDirs[i], "net_cls.classid")); err == nil {
			kind, data = "cgroup", controllers(at)
		}
		if err := unix.Mount("none", "/tmp", kind, 0, data); err != nil {
			return call("mount "+kind, err)
		}
		to := filepath.Join("/tmp", rel)
		if _, err := os.Stat(to); err != nil {
			to = "/tmp" // the border of the namespace is its root
		}
		if err := s.move1("cgroup.procs", to); err != nil {
			return err
		}
	}
	return s.plain()
}

// mountOf is where the file system of a path is mounted.
func mountOf(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return path
	}
	for path != "/" {
		var up unix.Stat_t
		if unix.Stat(filepath.Dir(path), &up) != nil || up.Dev != st.Dev {
			break
		}
		path = filepath.Dir(path)
	}
	return path
}

// controllers are those of a hierarchy of cgroup v1, as mount takes them.
func controllers(at string) string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	var all []string
	for line := range strings.Lines(string(b)) {
		left, right, _ := strings.Cut(line, " - ")
		f := strings.Fields(left)
		r := strings.Fields(right)
		if len(f) < 5 || len(r) < 3 || f[4] != at {
			continue
		}
		for _, o := range strings.Split(r[2], ",") {
			if o != "rw" && o != "ro" {
				all = append(all, o)
			}
		}
	}
	return strings.Join(all, ",")
}

// enter enters a namespace of the outsider.
func (s *stage) enter(name string, kind int) error {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", s.Outsider.PID, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return call("open /proc/PID/ns/"+name, err)
	}
	defer unix.Close(fd)
	return call("setns "+name, unix.Setns(fd, kind))
}
