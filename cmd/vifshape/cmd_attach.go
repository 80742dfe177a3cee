package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
)

func newAttachCommand(e *env) *cobra.Command {
	tree := false
	c := &cobra.Command{
		Use:   "attach PATH PID...",
		Short: "Put running processes into a branch, with their connections",
		Long: `Attach moves processes that run already, with all their threads, into the cgroup
of a branch, as if run had started them there at level tag. What they have open
follows: connections, what is accepted from their listeners from now on and what
waits there, and packet sockets. It is theirs from the next packet on, and stays
theirs when the branch's class changes. Their children follow with --tree; those
that they start later always do.

Attach looks again until it finds nothing new, so that a process may fork and
connect meanwhile. It prints what it moved. Not found are processes whose parent
has ended already, and sockets that are on their way from one process to another.

What a process in another network namespace sends is forwarded here without its
socket. With it the interface is bound that leads there, if there is one and nobody
was there before; else attach says why not.

A socket that cannot be given the branch, as one whose options take all the memory
that the kernel allows, is named, and the exit status is 3. With binding nft open
sockets keep their class; with net_cls those of a process whose first thread has
ended may. Attach says so. A service of
systemd is no part of its unit's cgroup any more: where the unit as a whole is
meant, bind it in the policy.

  vifshape attach eth0/backup 4711
  vifshape attach --tree eth0/web $(pidof nginx)

EXIT STATUS
  0    done
  1    an error; nothing was moved
  3    some of the processes are in the branch and some are not, or not all their
       sockets, or not the packets of some
  4    another vifshape is changing this network namespace
  5    root is needed, or root lacks a capability that the message names
  64   wrong flags or arguments
  130  interrupted; what was moved stays there`,
		Args: args(2, -1, "a branch and the number of a process"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			path, err := parsePath(a[0])
			if err != nil {
				return err
			}
			var pids []int
			for _, s := range a[1:] {
				pid, err := strconv.ParseInt(s, 10, 32)
				if err != nil || pid <= 0 {
					return usagef("%q is no process: give its number, such as pidof prints", s)
				}
				if !slices.Contains(pids, int(pid)) {
					pids = append(pids, int(pid))
				}
			}
			return e.attach(c.Context(), carriedBy(path), pids, tree)
		}),
	}
	c.Flags().BoolVar(&tree, "tree", false, "the processes' descendants, too")
	return c
}

// carriedBy is the branch that carries what is put at a path: what an interface's own node
// carries is its rest.
func carriedBy(path hierarchy.Path) hierarchy.Path {
	if path.Parent() == "" {
		return path.Join(hierarchy.RestName)
	}
	return path
}

func (e *env) attach(ctx context.Context, path hierarchy.Path, pids []int, tree bool) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	got, outside, err := m.Attach(ctx, path, pids, tree)
	if got != nil {
		e.attached(path, got, outside)
		if got.Stay == "" {
			observe.LeftBehind(ctx, m, path, got)
		}
	}
	switch {
	case err != nil && got != nil && len(got.Processes) > 0:
		return fmt.Errorf("%w; what was moved stays in %s", err, path)
	case err != nil:
		return err
	case len(got.Failed)+len(outside) > 0 && len(got.Processes) > 0:
		return codeError(exitPartly)
	case len(got.Failed) > 0:
		return codeError(exitError)
	}
	return nil
}

// attached prints what was done, and what was not.
func (e *env) attached(path hierarchy.Path, a *home.Attachment, outside []resolve.Outside) {
	e.printf("%s in %s\n", words.Number(len(a.Processes), "process", "processes"), path)
	for _, p := range a.Processes {
		switch {
		case p.There:
			e.printf("  %d %s, there already\n", p.PID, words.Printable(p.Name))
		case p.From == "":
			e.printf("  %d %s\n", p.PID, words.Printable(p.Name))
		default:
			e.printf("  %d %s, from %s\n", p.PID, words.Printable(p.Name), words.Printable(p.From))
		}
	}
	if len(a.Sockets) > 0 {
		e.printf("%s\n", words.Number(len(a.Sockets), "open socket follows", "open sockets follow"))
	}
	for _, s := range a.Sockets {
		text := s.Protocol
		if s.Local.IsValid() {
			text += " " + s.Local.String()
		}
		if s.Remote.IsValid() {
			text += " to " + s.Remote.String()
		}
		if s.Listening {
			text += ", listens"
		}
		if len(s.Shared) > 0 {
			text += "; shared with " + outsiders(s.Shared)
		}
		e.printf("  %d %s\n", s.PID, text)
	}
	if a.Waiting > 0 {
		e.printf("%s that no process holds yet\n", words.Number(a.Waiting, "connection follows", "connections follow"))
	}
	if a.Stay != "" {
		e.notef("open sockets keep their class, only new ones are the branch's: %s", a.Stay)
	}
	for _, f := range a.Failed {
		fmt.Fprintf(e.stderr, "vifshape: error: process %d: %v\n", f.PID, f.Err)
	}
	for _, o := range outside {
		fmt.Fprintf(e.stderr, "vifshape: error: %s: %s\n", path, words.Printable(o.String()))
	}
}

// outsiders names processes outside of the branch.
func outsiders(pids []int) string {
	const most = 3
	text := make([]string, 0, most)
	for _, pid := range pids[:min(len(pids), most)] {
		text = append(text, strconv.Itoa(pid))
	}
	switch {
	case len(pids) == 1:
		return "process " + text[0] + ", which stays outside and sends through it as the branch does"
	case len(pids) > most:
		return fmt.Sprintf("processes %s and %d more, which stay outside and send through it as the branch does", strings.Join(text, ", "), len(pids)-most)
	}
	return "processes " + strings.Join(text, ", ") + ", which stay outside and send through it as the branch does"
}
