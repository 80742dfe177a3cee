package cgroupfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is what /proc/PID/stat says of one.
type Process struct {
	Name   string // 15 bytes at most, any of them
	state  string
	Parent int
	Flags  uint64 // PF_*, include/linux/sched.h
	start  time.Duration
}

// ReadProcess reads it. An error of [os.ReadFile] says that there is none. State and
// flags are those of the first thread, which may end before the others do.
func ReadProcess(pid int) (Process, error) { return readStat(fmt.Sprintf("/proc/%d/stat", pid)) }

func readStat(file string) (p Process, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return p, err
	}
	const (
		state, parent, flags, start = 0, 1, 6, 19       // proc_pid_stat(5), counted behind the name
		tick                        = time.Second / 100 // USER_HZ
	)
	text := string(b)
	open, shut := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	f := strings.Fields(text[shut+1:])
	if open < 0 || shut < open || len(f) <= start {
		return p, fmt.Errorf("cannot be understood: %q", text)
	}
	p.Name, p.state = text[open+1:shut], f[state]
	if p.Parent, err = strconv.Atoi(f[parent]); err != nil {
		return p, err
	}
	if p.Flags, err = strconv.ParseUint(f[flags], 10, 32); err != nil {
		return p, err
	}
	ticks, err := strconv.ParseInt(f[start], 10, 64)
	p.start = time.Duration(ticks) * tick
	return p, err
}

// Exits says whether the thread is at its end, or beyond it: then it is in no cgroup
// that means anything.
func (p Process) Exits() bool {
	const exiting = 0x4 // PF_EXITING
	return p.Flags&exiting != 0 || p.state == "Z" || p.state == "X"
}

// Thread is a living thread of a process.
type Thread struct {
	ID      int
	cgroups string // its /proc/PID/task/TID/cgroup
}

// Cgroup is its path in the hierarchy of v2 or in that of net_cls, as the caller sees
// it. Ok is false where it has none.
func (t Thread) Cgroup(netCls bool) (path string, ok bool) {
	for line := range strings.Lines(t.cgroups) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(f) != 3:
		case netCls && slices.Contains(strings.Split(f[1], ","), "net_cls"), !netCls && f[0] == "0" && f[1] == "":
			return f[2], true
		}
	}
	return "", false
}

// Living are the threads of a process that live. The files of the process itself tell
// of the first one alone. Once that has ended they say that it is in the root with
// cgroup v1, and where it ended with v2, while the others go on, and may be moved
// (proc_cgroup_show and cgroup_migrate_add_task, kernel/cgroup/cgroup.c, v6.12).
// Where none lives the error is ESRCH.
func Living(pid int) ([]Thread, error) {
	const most = 100 // lists, each of which names threads that the one before did not
	dir := fmt.Sprintf("/proc/%d/task/", pid)
	var all []Thread
	seen := map[int]bool{}
	for range most {
		entries, err := os.ReadDir(dir)
		if err != nil && !hasEnded(err) {
			return nil, err
		}
		known := len(all)
		for _, e := range entries {
			id, err := strconv.Atoi(e.Name())
			if err != nil || seen[id] {
				continue
			}
			groups, err := os.ReadFile(dir + e.Name() + "/cgroup")
			if hasEnded(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			// Only now: one that does not exit yet was in that cgroup.
			is, err := readStat(dir + e.Name() + "/stat")
			if err == nil && !is.Exits() {
				seen[id] = true
				all = append(all, Thread{id, string(groups)})
			} else if err != nil && !hasEnded(err) {
				return nil, err
			}
		}
		switch {
		case len(all) > known: // and they may have started others
		case known == 0:
			return nil, fmt.Errorf("process %d: %w", pid, unix.ESRCH)
		default:
			return all, nil
		}
	}
	return nil, fmt.Errorf("process %d: its threads come and go faster than they can be looked at", pid)
}

// Ends says whether a process has ended or is about to: whichever of its threads still
// lives was killed, and nothing of it runs any more but the kernel's own steps to its end
// (zap_other_threads and complete_signal, kernel/signal.c, v6.12). For the moment between
// taking the signal and being at its end a thread shows neither (get_signal): so it is
// asked again for some milliseconds where it seems to go on.
func Ends(pid int) bool {
	for range 10 {
		if ends(pid) {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

func ends(pid int) bool {
	threads, err := Living(pid)
	if err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	for _, t := range threads {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", pid, t.ID))
		if !hasEnded(err) && (err != nil || !killed(string(status))) {
			return false
		}
	}
	return true
}

// killed says of a thread's status whether SIGKILL waits for it.
func killed(status string) bool {
	_, pending, _ := strings.Cut(status, "\nSigPnd:\t")
	pending, _, _ = strings.Cut(pending, "\n")
	set, err := strconv.ParseUint(pending, 16, 64)
	return err == nil && set&(1<<(unix.SIGKILL-1)) != 0
}

// own are the threads of the calling process as Living has them. Where all that are listed
// say the same, one stands for all, and nobody has to ask which of them live: the caller
// does.
func own() ([]Thread, error) {
	pid := os.Getpid()
	dir := fmt.Sprintf("/proc/%d/task/", pid)
	seen := map[string]bool{}
	var one []byte
	buf := make([]byte, 4096)
	for fresh := true; fresh; {
		fresh = false
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if seen[e.Name()] {
				continue
			}
			seen[e.Name()], fresh = true, true // and it may have started others
			groups, err := readInto(buf, dir+e.Name()+"/cgroup")
			switch {
			case hasEnded(err):
			case err != nil || one != nil && !bytes.Equal(one, groups):
				return Living(pid)
			case one == nil:
				one = bytes.Clone(groups)
			}
		}
	}
	if one == nil {
		return Living(pid)
	}
	return []Thread{{pid, string(one)}}, nil
}

// readInto reads a file of /proc that fits into a buffer, and is nothing to wait for:
// with less than half of the calls to the kernel that [os.ReadFile] takes.
func readInto(buf []byte, file string) ([]byte, error) {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, buf)
	if err == nil && n == len(buf) {
		err = unix.EFBIG
	}
	return buf[:max(n, 0)], err
}

// hasEnded says whether an error of reading in /proc is that what it was of has ended.
func hasEnded(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// Started is when a process started, as the time since the machine's start
// (CLOCK_BOOTTIME) and in hundredths of a second. It needs no privileges.
func Started(pid int) (time.Duration, error) {
	p, err := ReadProcess(pid)
	return p.start, err
}

// Called lists the processes of a program by its name, that of its file or the one that it
// gives itself (15 bytes at most), but for this process. Which file others run takes root.
func Called(name string) (pids []int, err error) {
	for pid := range processes(0) {
		p, err := ReadProcess(pid)
		if err != nil {
			if hasEnded(err) {
				continue
			}
			return nil, err
		}
		file, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)) // none: a thread of the kernel
		if file != "" && (p.Name == name || path.Base(strings.TrimSuffix(file, " (deleted)")) == name) && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
