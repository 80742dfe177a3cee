package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/emulate"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/link"
)

// limitFlags are what a limit is, as flags of run and limit.
type limitFlags struct {
	up, down, ceil, rate         string
	emulate, delay, jitter, loss string
	prio                         uint8
	on                           []string
	c                            *cobra.Command
}

func (f *limitFlags) add(c *cobra.Command) {
	f.c = c
	c.Flags().StringVar(&f.up, "up", "", "the most that it may send, a `BANDWIDTH` as 5mbit")
	c.Flags().StringVar(&f.down, "down", "", "the most that it may receive, a `BANDWIDTH` as 20mbit")
	c.Flags().StringVar(&f.ceil, "ceil", "", "the same as --up, in the word of policies, as `BANDWIDTH`")
	c.Flags().StringVar(&f.rate, "rate", "", "what is guaranteed to it for sending, as `BANDWIDTH`; default: a share of what it is part of otherwise; with --emulate, --delay or --loss: the most both ways")
	c.Flags().StringVar(&f.emulate, "emulate", "", "a link of a `KIND` that `vifshape help emulate` lists, as 3g, both ways")
	c.Flags().StringVar(&f.delay, "delay", "", "a link with a delay of `TIME` each way; --rate, --up and --down are its rates then")
	c.Flags().StringVar(&f.jitter, "jitter", "", "of the delay, `TIME` more or less")
	c.Flags().StringVar(&f.loss, "loss", "", "a link that loses `PERCENT` of all packets each way, as 0.5%")
	c.Flags().Uint8Var(&f.prio, "prio", 0, "`NUMBER` from 0, first, to 7 for what it borrows; default: that of what it is part of otherwise")
	c.Flags().StringArrayVar(&f.on, "on", nil, "`INTERFACE` that it is on; may be repeated; default: those of the default routes, of IPv4 and IPv6, and of a VPN that takes their packets")
}

// given says whether one of the flags was.
func (f *limitFlags) given() bool {
	return slices.ContainsFunc([]string{"up", "down", "ceil", "rate", "prio", "on", "emulate", "delay", "jitter", "loss"}, f.c.Flags().Changed)
}

// limit is what the flags say.
func (f *limitFlags) limit() (l shaper.Limit, err error) {
	if f.up != "" && f.ceil != "" {
		return l, usagef("--up and --ceil are the same: write one of them")
	}
	if slices.ContainsFunc([]string{"emulate", "delay", "jitter", "loss"}, f.c.Flags().Changed) {
		if l.Link, err = f.link(); err != nil {
			return l, usageError{err}
		}
		l.On = f.on
		return l, nil
	}
	for _, a := range []struct {
		name, text string
		to         *hierarchy.Amount
	}{{"up", f.up, &l.Ceil}, {"ceil", f.ceil, &l.Ceil}, {"down", f.down, &l.Down}, {"rate", f.rate, &l.Rate}} {
		if !f.c.Flags().Changed(a.name) {
			continue
		}
		b, err := hierarchy.ParseBandwidth(a.text)
		if err != nil {
			return l, usagef("--%s: %w", a.name, err)
		}
		*a.to = hierarchy.Absolute(b)
	}
	if f.c.Flags().Changed("prio") {
		l.Prio = &f.prio
	}
	l.On = f.on
	return l, nil
}

// link is the link that flags describe: a kind by name, with what others say besides.
func (f *limitFlags) link() (*emulate.Link, error) {
	var l emulate.Link
	if f.emulate != "" {
		p, err := emulate.Find(f.emulate)
		if err != nil {
			return nil, fmt.Errorf("--emulate: %w", err)
		}
		l = p.Link
	}
	for _, a := range []struct{ flag, name, text string }{
		{"rate", "rate", f.rate}, {"up", "up", f.up}, {"ceil", "up", f.ceil}, {"down", "down", f.down},
		{"delay", "delay", f.delay}, {"jitter", "jitter", f.jitter}, {"loss", "loss", f.loss},
	} {
		if !f.c.Flags().Changed(a.flag) {
			continue
		}
		if err := l.Set(a.name, a.text); err != nil {
			return nil, fmt.Errorf("--%s: %w", a.flag, err)
		}
	}
	if f.c.Flags().Changed("prio") {
		return nil, errors.New("--prio: an emulated link is the program's alone, and comes before nobody")
	}
	return &l, l.Check()
}

func newLimitCommand(e *env) *cobra.Command {
	var flags limitFlags
	tree := false
	c := &cobra.Command{
		Use:   "limit WHAT [BANDWIDTH]",
		Short: "Limit a service, user, container, process or interface, without a policy",
		Long: `Limit gives what it names a branch of its own. Where a policy is in force, that
comes below the branch which carries it otherwise, within the rules of that one and
without a change to the guarantees of others; where none is, in the smallest tree
that can hold it, whose other branch, the rest, has all that the line can do. A
BANDWIDTH without a flag is for both directions. Open connections follow at once.

The limit holds until unlimit takes it away, over the next apply, rollback or disable, too,
or until clear does, or the machine is restarted; one on a process ends with that and its
children. The same WHAT again changes its limit, in place. "vifshape limits" lists all.

WHAT is one of
  eth0                an interface, all of it
  pid:4711            a process; with --tree and its descendants
  firefox             a program: its processes of now, with their descendants, and
                      within a second, where vifshape agent runs, those to come
  unit:NAME.service   a unit of systemd's system manager; a service with its .socket
  slice:NAME.slice    a slice of it
  user:NAME           a user, by name or number
  container:NAME      a container, by name or id
  cgroup:/PATH        a cgroup, from the root of its hierarchy
  link:INTERFACE      what an interface brings in and this one sends on

  vifshape limit unit:nginx.service --up 30mbit
  vifshape limit user:alice --up 10mbit --down 50mbit
  vifshape limit eth0 100mbit
` + exitHelp,
		Args: args(1, 2, "what to limit, and a bandwidth or --up and --down"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			l, err := flags.limit()
			if err != nil {
				return err
			}
			if len(a) == 2 {
				if flags.given() && !(l.Ceil.IsZero() && l.Down.IsZero()) {
					return usagef("a bandwidth without a flag is for both directions: write %s, or --up and --down", a[1])
				}
				most, err := hierarchy.ParseBandwidth(a[1])
				if _, turned := hierarchy.ParseBandwidth(a[0]); err != nil && turned == nil {
					return usagef("what is limited comes first: vifshape limit %s %s", a[1], a[0])
				}
				if err != nil {
					return usageError{err}
				}
				l.Ceil, l.Down = hierarchy.Absolute(most), hierarchy.Absolute(most)
			}
			if l.Ceil.IsZero() && l.Down.IsZero() && l.Rate.IsZero() && l.Prio == nil && l.Link == nil {
				return usagef("limit %s to what? Write a bandwidth, or --up and --down: vifshape limit %[1]s --up 10mbit", a[0])
			}
			l.Below = tree
			return e.limit(c.Context(), a[0], l)
		}),
	}
	flags.add(c)
	c.Flags().BoolVar(&tree, "tree", false, "with pid: the process's descendants, too")
	return c
}

func (e *env) limit(ctx context.Context, what string, l shaper.Limit) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	if err := name(m, what, &l); err != nil {
		return err
	}
	made, err := m.Limit(ctx, l)
	if err != nil {
		return err
	}
	if l.Holder != nil {
		if out, err := watchLimit(l.Holder.PID).CombinedOutput(); err != nil {
			e.warnf("%s: nothing takes the limit away when its processes have ended, but the next vifshape that changes something: %v: %s", made[0], err, out)
		}
	}
	return nil
}

// name makes a limit one on what somebody wrote.
func name(m *shaper.Machine, what string, l *shaper.Limit) error {
	l.Limit = what
	kind, rest, ok := strings.Cut(what, ":")
	switch {
	case strings.TrimSpace(what) == "":
		return usagef("limit what? Write an interface, a program or a binding: vifshape limit eth0 10mbit")
	case kind == "pid" && ok:
		pid, err := strconv.ParseInt(rest, 10, 32)
		if err != nil || pid <= 0 {
			return usagef("%q is no process: write its number, as in pid:4711", what)
		}
		l.PIDs = []int{int(pid)}
	case ok:
		b, err := hierarchy.ParseBinding(what)
		if err != nil {
			return usageError{err}
		}
		l.Bind = []bind.Binding{b}
		return nil
	default:
		all, err := link.List(m.Conn)
		if err != nil {
			return err
		}
		if shaper.Among(all)(what) {
			if len(l.On) > 0 {
				return usagef("%s is an interface: --on is for limits on something else", what)
			}
			if !l.Rate.IsZero() || l.Prio != nil || l.Link != nil {
				return usagef("%s is an interface, all of it: write --up and --down alone", what)
			}
			l.On, l.Whole = []string{what}, true
			return nil
		}
		if l.PIDs, err = cgroupfs.Called(what); err != nil {
			return err
		}
		if meant := meantBinding(what); meant != "" && len(l.PIDs) == 0 {
			return usagef("there is neither an interface %s nor a process of that name%s", what, didYouMean(meant))
		}
		agent := m.Store.AgentRuns()
		if len(l.PIDs) == 0 && !agent {
			var names []string
			for _, o := range all {
				names = append(names, o.Name)
			}
			near := didYouMean(hierarchy.Nearest(what, names))
			if near == "" {
				near = fmt.Sprintf("; a service is unit:%s.service, a container container:%[1]s, a user user:%[1]s", what)
			}
			return fmt.Errorf("there is neither an interface %s nor a process of that name%s", what, near)
		}
		l.Program, l.Below = what, true
		if !agent {
			m.Notef("", "%s: those that are started later are not limited: `vifshape agent` does that where it runs", what)
		}
		return nil
	}
	var err error
	l.Holder, err = shaper.HolderOf(l.PIDs[0])
	return err
}

// meantBinding is the binding that somebody means who leaves out its kind, empty where the
// name does not say that.
func meantBinding(what string) string {
	switch {
	case strings.HasPrefix(what, "/"):
		return "cgroup:" + what
	case strings.HasSuffix(what, ".slice"):
		return "slice:" + what
	case strings.HasSuffix(what, ".service"), strings.HasSuffix(what, ".scope"), strings.HasSuffix(what, ".socket"):
		return "unit:" + what
	}
	return ""
}

// watchLimit is the process that starts the guard of a limit, and ends.
func watchLimit(pid int) *exec.Cmd {
	return exec.Command(selfPath, "unlimit", "guard", strconv.Itoa(pid))
}

func newUnlimitCommand(e *env) *cobra.Command {
	all := false
	c := &cobra.Command{
		Use:   "unlimit WHAT...",
		Short: "Take limits away",
		Long: `Unlimit takes limits away, by the words that "vifshape limits" lists, all or, where one
is not there, none. A tree that was made for limits goes with the last of them.
Processes that were put into a branch live on where they would be without it.
` + exitHelp,
		Args: func(c *cobra.Command, a []string) error {
			if all == (len(a) > 0) {
				return errors.New("write what limits are on, as `vifshape limits` lists it, or --all")
			}
			return nil
		},
		RunE: interruptible(func(c *cobra.Command, a []string) error { return e.unlimit(c.Context(), a) }),
	}
	c.Flags().BoolVar(&all, "all", false, "all limits")
	c.AddCommand(&cobra.Command{
		Use:    "guard PID [now]",
		Hidden: true,
		Args:   cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, a []string) error {
			pid, err := strconv.Atoi(a[0])
			if err != nil {
				return usageError{err}
			}
			if len(a) == 1 {
				return shaper.StartGuard(exec.Command(selfPath, "unlimit", "guard", a[0], "now"))
			}
			return e.guard(c.Context(), func(m *shaper.Machine, ctx context.Context) error { return m.GuardLimit(ctx, pid) })
		},
	})
	return c
}

func (e *env) unlimit(ctx context.Context, what []string) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	if len(what) == 0 {
		all, err := m.Limits()
		if err != nil {
			return err
		}
		for _, l := range all {
			what = append(what, l.Limit)
		}
	}
	return m.Unlimit(ctx, what...)
}

// limitsJSON is the stable form of limits.
type limitsJSON struct {
	Limits []limitJSON `json:"limits"`
}

// limitJSON is one of them.
type limitJSON struct {
	What  string              `json:"what"`           // that it is on, for unlimit
	Paths []hierarchy.Path    `json:"paths"`          // one on each interface
	Up    hierarchy.Bandwidth `json:"up,omitempty"`   // the most that it may send
	Down  hierarchy.Bandwidth `json:"down,omitempty"` // the most that it may receive
	Rate  hierarchy.Bandwidth `json:"rate,omitempty"` // that is guaranteed to it
	Link  string              `json:"link,omitempty"` // that is emulated
	PID   int                 `json:"pid,omitempty"`  // of the process that it goes with; 0: of none
	Pod   string              `json:"pod,omitempty"`  // the id of the pod that it goes with; empty: of none
}

func newLimitsCommand(e *env) *cobra.Command {
	asJSON, save := false, ""
	c := &cobra.Command{
		Use:   "limits",
		Short: "List the limits, or write what is in force as a policy",
		Long: `Limits lists what "vifshape limit" and "vifshape run --up" hold: what each is on, the
words for unlimit; its branches; the most that it may send and receive; and the
process or pod that it goes with. With --save it writes what is in force on the interfaces
that have limits as a policy, for "vifshape enable". What goes with a process is left out.

  vifshape limits --save limits.toml` + plainExitHelp,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error { return e.limits(save, asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().StringVar(&save, "save", "", "write a policy to `FILE`, which must not be there yet; -: to standard output")
	return c
}

func (e *env) limits(save string, asJSON bool) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	if save != "" {
		specs, notes, err := m.LimitsAsPolicy()
		if err != nil {
			return err
		}
		return e.writeNew(save, policy.Format("", specs, notes))
	}
	limits, err := m.Limits()
	if err != nil {
		return err
	}
	all := []limitJSON{}
	for _, l := range limits {
		x := limitJSON{What: l.Limit, Paths: l.Paths, Up: l.Ceil.Of(0), Down: l.Down.Of(0), Rate: l.Rate.Of(0), Pod: l.Pod}
		if l.Link != nil {
			x.Up, x.Down, x.Link = l.Link.Up, l.Link.Down, l.Link.String()
		}
		if l.Holder != nil {
			x.PID = l.Holder.PID
		}
		all = append(all, x)
	}
	if asJSON {
		return e.json(limitsJSON{all})
	}
	if len(all) == 0 {
		e.notef("there are no limits in this network namespace")
		return nil
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tUP\tDOWN\tRATE\tLINK\tUNTIL\tBRANCHES")
	for _, l := range all {
		until := "unlimit"
		if l.Pod != "" {
			until = "pod ends"
		}
		if l.PID != 0 {
			until = fmt.Sprintf("%d ends", l.PID)
		}
		var paths []string
		for _, p := range l.Paths {
			paths = append(paths, string(p))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", words.Printable(l.What), orDash(l.Up), orDash(l.Down), orDash(l.Rate), cmp.Or(l.Link, "-"), until, strings.Join(paths, " "))
	}
	return t.Flush()
}

// orDash is a bandwidth; "-": none is written.
func orDash(b hierarchy.Bandwidth) string {
	if b == 0 {
		return "-"
	}
	return b.String()
}

// limitOf is the limit of a program that is run, in words by which it is taken away.
func limitOf(argv []string) string {
	return amend.Name(filepath.Base(argv[0])) + "-" + strconv.Itoa(os.Getpid())
}
