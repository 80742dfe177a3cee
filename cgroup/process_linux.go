package cgroup

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// process is what /proc/PID/stat says of one.
type process struct {
	name   string // 15 bytes at most, any of them
	state  string
	parent int
	flags  uint64 // PF_*, include/linux/sched.h
	start  time.Duration
}

// readProcess reads it. An error of [os.ReadFile] says that there is none.
func readProcess(pid int) (p process, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
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
	p.name, p.state = text[open+1:shut], f[state]
	if p.parent, err = strconv.Atoi(f[parent]); err != nil {
		return p, err
	}
	if p.flags, err = strconv.ParseUint(f[flags], 10, 32); err != nil {
		return p, err
	}
	ticks, err := strconv.ParseInt(f[start], 10, 64)
	p.start = time.Duration(ticks) * tick
	return p, err
}

// Started is when a process started, as the time since the machine's start
// (CLOCK_BOOTTIME) and in hundredths of a second. It needs no privileges.
func Started(pid int) (time.Duration, error) {
	p, err := readProcess(pid)
	return p.start, err
}
