package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy"
)

func newRunCommand(e *env) *cobra.Command {
	user := ""
	c := &cobra.Command{
		Use:   "run PATH -- COMMAND [ARG...]",
		Short: "Start a program inside a branch",
		Long: `Run puts itself into the cgroup of a branch and then becomes the program: same
process id, same terminal, and the program's own exit status. Nothing stands
between the program and its signals; of those that were ignored only SIGINT and
SIGHUP stay so, as under nohup. The program and all its children send as the
branch allows. What they opened before, such as a socket on standard input, keeps
the class it had.

Environment, working directory and open files are passed on. With --user and a
name or number HOME, USER and LOGNAME are the user's; PATH, SHELL and all else
stay as they are.

  vifshape run eth0/backup -- rsync -a /home backup:/home
  vifshape run --user alice eth0/web/api -- ./server

EXIT STATUS
  the program's own, or
  1    an error; also when the branch is not in the kernel any more
  2    wrong flags or arguments
  4    another vifshape is changing this network namespace
  5    root is needed, or root lacks a capability that the message names
  126  the program is there and cannot be started
  127  there is no such program`,
		Args: args(2, -1, "a branch and a command"),
		RunE: func(c *cobra.Command, a []string) error {
			path, err := parsePath(a[0])
			if err != nil {
				return err
			}
			argv := a[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return usagef("run needs a command behind the branch: %s", c.UseLine())
			}
			if path.Parent() == "" { // what an interface's own node carries is its rest
				path = path.Join(hierarchy.RestName)
			}
			return e.run(c.Context(), path, cgroup.Command{Args: argv, User: user})
		},
	}
	// Flags behind the branch are the program's.
	c.Flags().SetInterspersed(false)
	c.Flags().StringVar(&user, "user", "", "run the program as `USER`, a name or number, with all of the user's groups, or as two numbers UID:GID with that group alone")
	return c
}

func (e *env) run(ctx context.Context, path hierarchy.Path, cmd cgroup.Command) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.within(ctx, path); err != nil {
		return err
	}
	x, err := m.shaped(path.Interface(), "")
	if err != nil {
		return err
	}
	defer x.binder.Close()
	class, err := x.entry(path)
	if err != nil {
		return err
	}
	if err := x.stands(class); err != nil {
		return err
	}
	home, now, err := x.binder.BoundHome(path)
	if err == nil && now != class { // else there is nothing to change, and nobody to wait for
		home, err = m.home(ctx, x, path, class)
	}
	if err != nil {
		return err
	}
	return x.binder.Exec(home, cmd)
}

// stands says whether the kernel has what the record tells of: others may take
// a tree away, and an interface that is made anew has none. A program that was
// started then would go past every limit.
func (x *shaped) stands(class hierarchy.ClassID) error {
	missing := "the tree"
	has, err := x.device.HasClass(class)
	if has {
		missing = "the classifier"
		var program uint32
		if program, err = x.device.EgressProgram(); err == nil && program == 0 {
			has, err = x.device.CgroupFilter()
			if err == nil && !has {
				has, err = x.binder.HasClassifier()
			}
		}
	}
	if err != nil || has {
		return err
	}
	return fmt.Errorf("%s is not shaped (%s is gone): apply %s again", x.record.Interface, missing, x.record.policy())
}

// entry is the class that a branch's own processes belong to.
func (x *shaped) entry(path hierarchy.Path) (hierarchy.ClassID, error) {
	if x.record.Policy == "" {
		return 0, fmt.Errorf("%s is not shaped by vifshape: apply a policy first", path.Interface())
	}
	class, inner, ok := x.record.IDs.Find(path)
	switch {
	case !ok:
		err := fmt.Errorf("there is no branch %s", path)
		if n := hierarchy.Nearest(string(path), x.record.paths()); n != "" {
			err = fmt.Errorf("%w; did you mean %s?", err, n)
		}
		return 0, err
	case !inner:
		return class, nil
	}
	class, _, ok = x.record.IDs.Find(path.Join(hierarchy.RestName))
	if !ok {
		return 0, fmt.Errorf("%s has branches below it and no leaf of its own: name one of them, or add [interface.%s.rest] to the policy", path, strings.ReplaceAll(string(path), "/", "."))
	}
	return class, nil
}

// policy is the policy's file in words.
func (r *record) policy() string {
	if r.Policy == "-" {
		return "the policy"
	}
	return printable(r.Policy)
}

func (r *record) paths() []string {
	var all []string
	for _, p := range r.IDs.Names(r.Interface) {
		all = append(all, string(p))
	}
	return all
}

// home is the cgroup of a branch, made and bound if it is not yet.
func (m *machine) home(ctx context.Context, x *shaped, path hierarchy.Path, class hierarchy.ClassID) (string, error) {
	unlock, err := m.store.lock(ctx, "run "+string(path))
	if err != nil {
		return "", err
	}
	defer unlock()
	home, err := x.binder.Home(path)
	if err != nil {
		return "", err
	}
	_, err = x.binder.Do(ctx, []hierarchy.Step{{Action: hierarchy.Create, New: &hierarchy.Bound{Target: home, Class: class, Path: path, From: "run"}}})
	if err != nil {
		return "", err
	}
	if _, now, err := x.binder.BoundHome(path); err != nil || now != class {
		return "", errors.Join(err, fmt.Errorf("%s: the classifier on the interface is another version's: apply %s again", path, x.record.policy()))
	}
	return home, nil
}
