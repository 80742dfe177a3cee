package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cgroup/confine"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/link"
)

func newRunCommand(e *env) *cobra.Command {
	var (
		cmd      confine.Command
		env      []string
		keepCaps []string
		flags    limitFlags
	)
	c := &cobra.Command{
		Use:   "run [flags] [PATH] -- COMMAND [ARG...]", // flags behind the command are its own
		Short: "Start a program inside a branch, or with a limit of its own",
		Long: `Run puts itself into the cgroup of a branch and then becomes the program: same
process id, same terminal, and the program's own exit status. Nothing stands
between the program and its signals; of those that were ignored only SIGINT and
SIGHUP stay so, as under nohup. The program and all its children send as the
branch allows. What was opened before, such as a socket on standard input, keeps the
class it had; with binding bpf an accepted connection is the branch's as soon as the
program sends on it.

Without PATH, but with a limit, the program gets a branch of its own on the interfaces
of the default routes, and of a VPN that takes their packets, or on those of --on: where
a tree stands, below the branch that carries this process, within its rules; where none
does, in the smallest tree that can hold it, whose rest has all that the line can do. It
goes with the last process of the program. On several interfaces the limit holds for each.

Environment and working directory are passed on, but for what flags say, and
VIFSHAPE_BRANCH is the branch. With --user and a name or number HOME, USER and
LOGNAME are the user's; PATH, SHELL and all else stay as they are.

LEVELS
  lock  The program cannot leave the branch, root neither. It gets a cgroup
        namespace and mounts of its own, in which cgroups, pinned BPF objects,
        sysfs, debugfs, tracefs, configfs, binfmt_misc, nfsd, /proc/sys,
        /proc/bus and what vifshape keeps in /run/vifshape are read-only, and in
        which root does not see what is mounted later; a Landlock domain; and a
        filter of system calls. It loses the capabilities NET_ADMIN, NET_RAW,
        SYS_ADMIN, BPF, PERFMON, SYS_PTRACE, SYS_MODULE, SYS_RAWIO, SYS_BOOT and
        SYS_TTY_CONFIG, and all open files but the standard ones, which may be
        files, pipes, sockets, terminals and devices, and neither a directory nor
        one of the files above. What does not work in it: sudo and other programs
        with the set-user-id bit, mounts, containers of its own, entering other
        namespaces (nsenter), settings in /sys, 32-bit programs, packet
        captures, io_uring, PPPoE, tun and tap devices, putting input into a
        terminal (TIOCSTI), files by handle (open_by_handle_at), looking into
        processes outside. ping works for the groups in the setting
        net.ipv4.ping_group_range. Flatpak, Steam and whatever else makes its
        sandbox by bubblewrap need level tag: mounts are refused in a Landlock
        domain, in a user namespace too. Where the kernel lacks something of this,
        run starts nothing and says what is missing.
  best  As lock, as far as the kernel goes; run says what is not held.
  tag   The cgroup alone. It holds honest programs and all users but root.

Users who are not root start programs in branches that the policy delegates to them,
by delegate = ["alice", "uid:1000"], where ` + "`vifshape agent`" + ` runs. Level lock then
takes no namespaces: cgroups and all else of the above are root's, and the program
cannot become root. It leaves the cgroup of the user's session, and with it what
limits root has set there for memory and tasks.

At no level run can help against an accomplice outside: a cron job, ssh to the
machine itself, a proxy; files that others execute or go by, such as root's
crontab, the policy, and the kernel's helpers modprobe and request-key; a
descriptor that is passed in on purpose; a device that sends without the kernel's
queues (RDMA, vfio, uio, USB), has the kernel send (/dev/nvme-fabrics), or types
for whoever sits there (uinput, uhid, /dev/input); or a tunnel of the kernel that
takes a program's socket into a network namespace of its own (GTP, OpenVPN), where
the kernel has such.

  vifshape run eth0/backup -- rsync -a /home backup:/home
  vifshape run --user alice --cwd /srv/api eth0/web/api -- ./server
  vifshape run --keep-caps NET_RAW eth0/web -- tcpdump
  vifshape run --up 5mbit --down 20mbit -- restic backup /home

EXIT STATUS
  the program's own, or
  1    an error; also when the branch is not in the kernel any more, or the level
       cannot be kept on this machine
  4    another vifshape is changing this network namespace
  5    root is needed, or root lacks a capability that the message names; or the
       branch is not delegated to the user, or there is no agent
  64   wrong flags or arguments
  126  the program is there and cannot be started
  127  there is no such program`,
		Args: func(c *cobra.Command, a []string) error {
			if flags.given() {
				return args(1, -1, "a command")(c, a)
			}
			return args(2, -1, "a branch, or a limit such as --up 5mbit, and a command")(c, a)
		},
		RunE: func(c *cobra.Command, a []string) error {
			limit, err := flags.limit()
			if err != nil {
				return err
			}
			path, argv := hierarchy.Path(""), a
			if !flags.given() {
				if c.ArgsLenAtDash() == 0 {
					return usagef("nothing says what %s may send: write a branch before --, or a limit such as --up 5mbit", a[0])
				}
				if path, err = parsePath(a[0]); err != nil {
					return err
				}
				if argv = a[1:]; argv[0] == "--" {
					argv = argv[1:]
				} else if strings.HasPrefix(argv[0], "-") {
					return usagef("%s stands behind the branch, where the program's own flags are: write it before %s, or -- before the program", argv[0], a[0])
				}
				if len(argv) == 0 {
					return usagef("run needs a command behind the branch: %s", c.UseLine())
				}
				if path.Parent() == "" { // what an interface's own node carries is its rest
					path = path.Join(hierarchy.RestName)
				}
			} else if len(a) > 1 && a[1] == "--" {
				return usagef("%s has a ceiling of its own: leave out the branch, or --up and the like", a[0])
			}
			for _, v := range env {
				if name, _, ok := strings.Cut(v, "="); !ok || name == "" {
					return usagef("--env %s: write NAME=VALUE", v)
				}
			}
			for _, list := range keepCaps {
				for name := range strings.SplitSeq(list, ",") {
					cmd.KeepCaps = append(cmd.KeepCaps, strings.TrimSpace(name))
				}
			}
			cmd.Args = argv
			in := func(path hierarchy.Path) confine.Command {
				cmd.Env = environment(os.Environ(), append([]string{shaper.BranchVariable + "=" + string(path)}, env...))
				return cmd
			}
			if path == "" {
				return likeUser(c.Context(), e.runLimited(c.Context(), limit, in))
			}
			err = e.run(c.Context(), path, in(path))
			if errors.As(err, new(*link.NotFoundError)) && !strings.Contains(a[0], "/") { // it may be the program
				return fmt.Errorf("%w; before the program stands a branch, or a limit: vifshape run --up 5mbit -- %s", err, a[0])
			}
			return likeUser(c.Context(), err)
		},
	}
	// Flags behind the branch are the program's.
	c.Flags().SetInterspersed(false)
	f := c.Flags()
	f.StringVar(&cmd.User, "user", "", "run the program as `USER`, a name or number, with all of the user's groups, or as two numbers UID:GID with that group alone")
	f.TextVar(&cmd.Level, "level", confine.LevelLock, "how firmly the program is held: `LEVEL` lock, best or tag")
	f.StringArrayVar(&keepCaps, "keep-caps", nil, "capabilities that the program keeps, as `NAME,...`; run says what each opens")
	f.StringVar(&cmd.Dir, "cwd", "", "run the program in directory `DIR`")
	flags.add(c)
	f.StringArrayVar(&env, "env", nil, "set a variable `NAME=VALUE` of the program's environment; may be repeated")
	return c
}

// environment is one with variables set; the last of a name counts.
func environment(base, set []string) []string {
	all := slices.Clone(base)
	for _, v := range set {
		name, _, _ := strings.Cut(v, "=")
		all = slices.DeleteFunc(all, func(o string) bool { return strings.HasPrefix(o, name+"=") })
		all = append(all, v)
	}
	return all
}

func (e *env) run(ctx context.Context, path hierarchy.Path, cmd confine.Command) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	if os.Geteuid() == 0 {
		return m.Exec(ctx, path, cmd)
	}
	if cmd.User != "" {
		return rightsError("--user: only root can start programs as another user")
	}
	return m.ExecPlaced(ctx, path, cmd, func() error { return agentOf(m).Do(ctx, client.Request{Op: client.Enter, Path: path}) })
}

// likeUser adds to the error of a user who is not there who may have been meant.
func likeUser(ctx context.Context, err error) error {
	var no *confine.NoUserError
	if !errors.As(err, &no) {
		return err
	}
	_, near := resolve.Like(ctx, resolve.Config{Root: "/"}, bind.Binding{Kind: bind.User, Name: no.Name})
	var names []string
	for _, b := range near {
		names = append(names, words.Printable(b.Name))
	}
	return fmt.Errorf("%w%s", err, hierarchy.DidYouMean(names))
}

// runLimited becomes a program that has a limit of its own.
func (e *env) runLimited(ctx context.Context, l shaper.Limit, command func(hierarchy.Path) confine.Command) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	l.Limit = limitOf(command("").Args)
	return m.ExecLimited(ctx, l, command, watchLimit(os.Getpid()))
}
