package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
)

// Command is a program to start inside a branch.
type Command struct {
	Args []string // the program's name and its arguments
	Env  []string // nil: the caller's
	// User is a name, a number, or two numbers UID:GID, for whom the program
	// runs; empty: the caller's user. HOME, USER and LOGNAME follow it.
	User string
	// Dir is the program's working directory, from which a name with a slash in
	// Args[0] is looked up; empty: the caller's. PWD follows it.
	Dir   string
	Level Level // the zero value is LevelLock
	// KeepCaps names capabilities, as in capabilities(7), that LevelLock and
	// LevelBest leave to the program. What each opens is told to Warn.
	KeepCaps []string
	// ReadOnly is a directory that LevelLock and LevelBest let no program change, root's
	// neither, and Hidden one in which it finds nothing; empty: none.
	ReadOnly, Hidden string
	// Past says why sockets of root in the cgroup may go round the queues, nothing where
	// they may not. It is asked once the process is there; nil: there is nobody to ask.
	Past func() string
	// Warn is told what of the level is not held, and what else to know. May be nil.
	Warn func(string)
}

// ExecError says that a program could not be started. Err is
// [exec.ErrNotFound] or [fs.ErrNotExist] where there is none of that name, for
// which shells use exit code 127; anything else is their 126.
type ExecError struct {
	Name string
	Err  error
}

func (e *ExecError) Error() string { return fmt.Sprintf("run %s: %v", e.Name, e.Err) }

func (e *ExecError) Unwrap() error { return e.Err }

// NotFound tells 127 from 126.
func (e *ExecError) NotFound() bool {
	return errors.Is(e.Err, exec.ErrNotFound) || errors.Is(e.Err, fs.ErrNotExist)
}

// NoUserError says that there is no user of a name.
type NoUserError struct{ Name string }

func (e *NoUserError) Error() string {
	return fmt.Sprintf("user %q is not in the user database", e.Name)
}

// Exec has join put the calling process into the cgroup of a branch, by itself or by
// somebody else, and becomes the program: same process id, signals, terminal and exit
// code. It returns only when that failed.
//
// All that can be found out is found out before anything changes: the program,
// its mode, the user, and what the kernel lacks for the level ([LockError]). The
// process moves as a whole, its open sockets keep their class (see package cgroup),
// and only what it opens later is the branch's.
//
// At [LevelLock] and [LevelBest] it takes no privileges, if the caller has none: control
// files of cgroups are root's, and the program cannot become root, so that the
// namespaces are not needed.
//
// When Exec fails after that, the process is not what it was: it should end.
func (c Command) Exec(join func() error) error {
	if c.Warn == nil {
		c.Warn = func(string) {}
	}
	ready, err := c.prepare()
	if err != nil {
		return err
	}
	lock, err := ready.lock(c)
	if err != nil {
		return err
	}
	if lock != nil {
		// namespaces, capabilities and filters are those of the thread that executes; it
		// is not fit for anything else afterwards
		runtime.LockOSThread()
	}
	if err := join(); err != nil {
		return err
	}
	c.tellPast(ready)
	if err := lock.enter(c.Warn); err != nil {
		return err
	}
	if err := ready.become(); err != nil {
		return err
	}
	if c.Dir != "" {
		if err := unix.Chdir(c.Dir); err != nil {
			return &fs.PathError{Op: "enter", Path: c.Dir, Err: err}
		}
	}
	if err := lock.finish(c.Warn); err != nil {
		return err
	}
	return &ExecError{c.Args[0], unix.Exec(ready.path, c.Args, ready.env)}
}

// Check is the error of a program, a directory or a user that is not there.
func (c Command) Check() error {
	_, err := c.prepare()
	return err
}

// ready is a command with everything looked up.
type ready struct {
	path     string
	env      []string
	switches bool
	keeps    bool // capabilities beyond the change of user
	uid, gid int
	groups   []int
}

func (c Command) prepare() (*ready, error) {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return nil, errors.New("run: no program given")
	}
	r := &ready{env: c.Env}
	if r.env == nil {
		r.env = os.Environ()
	}
	name := c.Args[0]
	if c.Dir != "" {
		dir, err := filepath.Abs(c.Dir)
		if err != nil {
			return nil, err
		}
		switch st, err := os.Stat(dir); {
		case err != nil:
			return nil, err
		case !st.IsDir():
			return nil, &fs.PathError{Op: "enter", Path: c.Dir, Err: unix.ENOTDIR}
		}
		r.set("PWD", dir)
		if strings.Contains(name, "/") && !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
	}
	path, err := exec.LookPath(name)
	if err != nil && !errors.Is(err, exec.ErrDot) {
		var e *exec.Error
		if errors.As(err, &e) {
			err = e.Err
		}
		return nil, &ExecError{c.Args[0], err}
	}
	if r.path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	return r, r.user(c.User)
}

// user looks a user up. Names come from the system's user database, numbers need
// not be in it when the group is given too.
func (r *ready) user(name string) error {
	if name == "" {
		return nil
	}
	r.switches = true
	if uid, gid, ok := strings.Cut(name, ":"); ok {
		u, errU := strconv.ParseUint(uid, 10, 31)
		g, errG := strconv.ParseUint(gid, 10, 31)
		if errU != nil || errG != nil {
			return fmt.Errorf("user %q: write a name, a number, or two numbers UID:GID", name)
		}
		r.uid, r.gid = int(u), int(g)
		return nil
	}
	u, err := user.Lookup(name)
	if _, e := strconv.Atoi(name); e == nil {
		u, err = user.LookupId(name)
	}
	if err != nil {
		var noNumber user.UnknownUserIdError
		var noName user.UnknownUserError
		switch {
		case errors.As(err, &noNumber):
			return fmt.Errorf("user %s is not in the user database: write %s:GID", name, name)
		case errors.As(err, &noName):
			return &NoUserError{name}
		}
		return fmt.Errorf("user %q: %w", name, err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return fmt.Errorf("groups of user %q: %w", name, err)
	}
	for _, id := range append([]string{u.Uid, u.Gid}, ids...) {
		n, err := strconv.Atoi(id)
		if err != nil {
			return fmt.Errorf("user %q: %w", name, err)
		}
		r.groups = append(r.groups, n)
	}
	r.uid, r.gid, r.groups = r.groups[0], r.groups[1], r.groups[2:]
	r.set("HOME", u.HomeDir)
	r.set("USER", u.Username)
	r.set("LOGNAME", u.Username)
	return nil
}

// root says that the program runs as root, or with a capability of its caller's.
func (r *ready) root() bool {
	if r.switches {
		return r.uid == 0
	}
	return !powerless()
}

// set gives the program a variable of the environment.
func (r *ready) set(key, value string) {
	r.env = append(slices.DeleteFunc(slices.Clone(r.env), func(o string) bool { return strings.HasPrefix(o, key+"=") }), key+"="+value)
}

// become changes the user: groups first, while that is still allowed.
func (r *ready) become() error {
	if !r.switches {
		return nil
	}
	var err error
	if r.keeps {
		err = unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	}
	if err == nil {
		err = syscall.Setgroups(r.groups)
	}
	if err == nil {
		err = syscall.Setgid(r.gid)
	}
	if err == nil {
		err = syscall.Setuid(r.uid)
	}
	if err != nil {
		return fmt.Errorf("become user %d: %w", r.uid, caps.Explain(err, unix.CAP_SETUID, unix.CAP_SETGID))
	}
	return nil
}
