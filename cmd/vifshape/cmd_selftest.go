package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/confine"
	"github.com/vifshape/vifshape/cgroup/escape"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// selftestPolicy is what the attempts are made against: to get out of mine.
const selftestPolicy = `version = 1

[interface.eth0]
rate = "1gbit"

[interface.eth0.mine]
rate = "100mbit"
ceil = "200mbit"

[interface.eth0.other]
rate = "100mbit"
ceil = "200mbit"
`

const (
	selftestMine  hierarchy.Path = "eth0/mine"
	selftestOther hierarchy.Path = "eth0/other"
	selftestRest  hierarchy.Path = "eth0/rest"
	selftestPort                 = 5001
	// an attempt takes milliseconds, or tenths of seconds on an emulated processor
	selftestPatience = time.Minute
)

type escapeOptions struct {
	binding, level, user string
	only                 []string
	json, verbose        bool
}

func newSelftestCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "selftest",
		Short: "Try out on this machine what vifshape promises",
		Long: `Selftest tries out on this machine what vifshape promises, in network namespaces
of its own.

EXIT STATUS
  0    what is promised holds
  1    it does not, or an error
  5    root is needed, or root lacks a capability that the message names
  64   wrong flags or arguments
  130  interrupted; everything was removed`,
		Args: noCommand,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newEscapeCommand(e), newAttemptCommand(e), newOutsiderCommand(e))
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
	return c
}

func newEscapeCommand(e *env) *cobra.Command {
	var o escapeOptions
	c := &cobra.Command{
		Use:   "escape [ATTEMPT...]",
		Short: "Try to get out of a branch, in every way that is known",
		Long: `Escape makes two network namespaces and a cable between them, applies a small
policy there, and starts programs inside a branch that try to get out of it: as
root and as a user without privileges, at both levels of run, and for each way of
binding that this machine has. The interfaces of this machine are left alone.

Each attempt sends a known number of packets. Which class counted them, and how
many arrived at the far end, says what came of it:

  held        all were counted in the branch's own class
  refused     the kernel refused a call
  open        it got out, which is documented for this way, level and user
  impossible  it got out, and nothing on the machine could close that
  not tried   the kernel lacks what it takes
  ESCAPED     it got out and should not have

EXIT STATUS
  0    nothing got out but what is documented
  1    something did, or an error
  5    root is needed, or root lacks a capability that the message names
  64   wrong flags or arguments
  130  interrupted; everything was removed`,
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			o.only = a
			return e.escape(c.Context(), o)
		}),
	}
	f := c.Flags()
	f.StringVar(&o.binding, "binding", "", "one binding alone: `bpf`, nft or net_cls")
	f.StringVar(&o.level, "level", "", "one level alone: `lock` or tag")
	f.StringVar(&o.user, "user", "", "one user alone: `root` or nobody")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print the reason of every verdict")
	return c
}

// newAttemptCommand is what the self-test starts inside branches.
func newAttemptCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:    "attempt NAME PLACE",
		Short:  "Make one attempt",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, a []string) error {
			var p escape.Place
			if err := json.Unmarshal([]byte(a[1]), &p); err != nil {
				return err
			}
			o, err := escape.Perform(a[0], p)
			if err != nil {
				return err
			}
			return e.json(o)
		},
	}
}

// newOutsiderCommand is what the self-test starts in the other branch.
func newOutsiderCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:    "outsider PLACE",
		Short:  "Serve those who try to get out, until standard input ends",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, a []string) error {
			var p escape.Place
			if err := json.Unmarshal([]byte(a[0]), &p); err != nil {
				return err
			}
			return escape.Serve(p, os.Stdin, e.stdout)
		},
	}
}

// escapeResult is what came of one attempt in one case.
type escapeResult struct {
	Attempt string `json:"attempt"`
	escape.Case
	escape.Result
	Outcome escape.Outcome `json:"outcome"`
	Counts  escape.Counts  `json:"packets"`
}

// escapeJSON is the stable form of selftest escape.
type escapeJSON struct {
	Holds bool       `json:"holds"`
	Ways  []*escapes `json:"ways"`
}

// escapes are the results for one way of binding.
type escapes struct {
	Binding string         `json:"binding"`
	Way     bind.Way       `json:"way,omitempty"`
	Lacks   string         `json:"lacks,omitempty"` // why the way, or a level with it, was not tried
	Results []escapeResult `json:"results,omitempty"`
}

func (o *escapeOptions) check() error {
	one := func(flag, v string, of ...string) error {
		if v == "" || slices.Contains(of, v) {
			return nil
		}
		return usagef("--%s %s: write one of %s", flag, v, strings.Join(of, ", "))
	}
	for _, name := range o.only {
		if escape.Find(name) == nil {
			return usagef("there is no attempt %q", name)
		}
	}
	return errors.Join(one("binding", o.binding, "bpf", "nft", "net_cls"), one("level", o.level, "tag", "lock"), one("user", o.user, "root", "nobody"))
}

func (e *env) escape(ctx context.Context, o escapeOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	var all []*escapes
	for _, binding := range []string{"bpf", "nft", "net_cls"} {
		if o.binding != "" && o.binding != binding {
			continue
		}
		found, err := e.escapeBy(ctx, binding, o)
		if err != nil {
			return err
		}
		all = append(all, found)
		if !o.json {
			writeEscapes(e.stdout, found, o.verbose)
		}
	}
	bad, tried := 0, 0
	for _, x := range all {
		for _, r := range x.Results {
			tried++
			if r.Verdict.Bad() {
				bad++
			}
		}
	}
	if o.json {
		if err := e.json(escapeJSON{bad == 0 && tried > 0, all}); err != nil {
			return err
		}
	}
	switch {
	case tried == 0:
		return fmt.Errorf("nothing could be tried: %s", all[0].Lacks)
	case bad > 0:
		e.notef("%d of %d attempts got out, or proved nothing, that should be held", bad, tried)
		return codeError(exitError)
	}
	return nil
}

// trial is a network with a branch to get out of.
type trial struct {
	*env
	binding  string
	pair     *lab.Pair
	sink     *lab.Sink
	tap      int // a packet socket at the far end
	arrived  uint64
	conn     *rtnl.Conn
	open     *os.File // a socket from outside of the branch
	file     string
	way      bind.Way
	class    map[hierarchy.Path]hierarchy.ClassID
	place    escape.Place
	outsider map[escape.User]*outsider
	dirs     []string // of both branches, to kill what is left
	store    *record.Store
	stored   map[string]string // what is in the run directory
	planned  string            // what plan said before anything was tried: nothing, as a rule
	spoilt   bool
}

// outsider is a process in the other branch.
type outsider struct {
	*exec.Cmd
	in io.Closer
	escape.Served
}

// escapeBy makes all attempts for one way of binding.
func (e *env) escapeBy(ctx context.Context, binding string, o escapeOptions) (found *escapes, err error) {
	found = &escapes{Binding: binding}
	if found.Lacks = lacksWay(binding); found.Lacks != "" {
		return found, nil
	}
	t, err := e.trial(ctx, binding)
	defer func() { err = errors.Join(err, t.close()) }()
	if err != nil {
		return nil, err
	}
	found.Way = t.way
	free := map[string]*escape.Outcome{} // as root at level tag
	for _, level := range []escape.Level{escape.Tag, escape.Lock} {
		if o.level != "" && o.level != string(level) {
			continue
		}
		if why, err := t.lacksLevel(ctx, level); err != nil || why != "" {
			found.Lacks = why
			if err != nil {
				return nil, err
			}
			continue
		}
		for _, a := range escape.Attempts() {
			if len(o.only) > 0 && !slices.Contains(o.only, a.Name) {
				continue
			}
			for _, user := range []escape.User{escape.Root, escape.Nobody} {
				if o.user != "" && o.user != string(user) {
					continue
				}
				c := escape.Case{Way: t.way, Level: level, User: user}
				r, err := t.attempt(ctx, &a, c, free)
				if err != nil {
					return nil, fmt.Errorf("attempt %s (%v): %w", a.Name, c, err)
				}
				found.Results = append(found.Results, r)
			}
		}
	}
	return found, nil
}

// lacksWay says why a binding cannot be had on this machine.
func lacksWay(binding string) string {
	want := shaper.Ways(binding)
	why := ""
	for _, w := range cgroup.Probe().Ways {
		if !slices.Contains(want, w.Way) {
			continue
		}
		if w.Err == nil {
			return ""
		}
		if why == "" {
			why = w.Err.Error()
		}
	}
	return why
}

// trial makes the network. It returns what there is also with an error, to be
// closed.
func (e *env) trial(ctx context.Context, binding string) (*trial, error) {
	quiet := *e
	quiet.stdout, quiet.stderr = io.Discard, io.Discard
	t := &trial{env: &quiet, binding: binding, tap: -1, outsider: map[escape.User]*outsider{}}
	return t, t.make(ctx)
}

func (t *trial) make(ctx context.Context) (err error) {
	if t.pair, err = lab.NewPair(lab.PairConfig{}); err != nil {
		return err
	}
	if t.sink, err = lab.NewSink(context.WithoutCancel(ctx), t.pair.Far, selftestPort); err != nil {
		return err
	}
	if err := t.pair.Far.Do(t.listen); err != nil {
		return err
	}
	if err := t.pair.Near.Do(func() error { return t.apply(ctx) }); err != nil {
		return err
	}
	if t.conn, err = rtnl.Open(rtnl.Config{NetNS: t.pair.Near.FD()}); err != nil {
		return err
	}
	for _, user := range []escape.User{escape.Root, escape.Nobody} {
		if err := t.serve(ctx, user); err != nil {
			return fmt.Errorf("start a process in %s: %w", selftestOther, err)
		}
	}
	if err := t.find(); err != nil {
		return err
	}
	// the branch has a cgroup from the first program on
	if _, _, err := t.perform(ctx, "udp", escape.Tag, escape.Root); err != nil {
		return err
	}
	if t.stored, err = t.keeps(); err != nil {
		return err
	}
	t.planned, err = t.plan(ctx)
	return err
}

// listen counts what arrives at the far end, whatever it is.
func (t *trial) listen() error {
	i, err := net.InterfaceByName(t.pair.FarDev)
	if err != nil {
		return err
	}
	t.place.FarMAC = i.HardwareAddr
	const all = 0x0300 // ETH_P_ALL as the network has it
	t.tap, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		// Nothing is read: what does not fit is counted, too.
		err = unix.SetsockoptInt(t.tap, unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
	}
	if err == nil {
		err = unix.SetsockoptInt(t.tap, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	}
	if err == nil {
		err = unix.Bind(t.tap, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	}
	return os.NewSyscallError("count what arrives", err)
}

// apply is vifshape apply, and finds out what attempts need to know. It is called
// inside the near namespace.
func (t *trial) apply(ctx context.Context) error {
	s, err := record.Open(t.env.runDir)
	if err != nil {
		return err
	}
	t.store = s
	t.file = filepath.Join(s.Dir, "selftest.toml")
	if err := errors.Join(record.MakeDir(s.Dir), os.WriteFile(t.file, []byte(selftestPolicy), 0o644)); err != nil {
		return err
	}
	if err := t.env.apply(ctx, t.file, applyOptions{binding: t.binding}); err != nil {
		return err
	}
	// users may ping, as on most machines
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err != nil {
		return err
	}
	r, err := s.Load(t.pair.Dev)
	if err != nil {
		return err
	}
	t.way, t.class = r.Way, map[hierarchy.Path]hierarchy.ClassID{}
	for _, p := range []hierarchy.Path{selftestMine, selftestOther, selftestRest} {
		if t.class[p], _, _ = r.IDs.Find(p); p == selftestRest {
			t.class[p] = hierarchy.ID(hierarchy.RestMinor)
		}
	}
	i, err := net.InterfaceByName(t.pair.Dev)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	t.open = os.NewFile(uintptr(fd), "socket")
	t.place = escape.Place{
		Self: []string{selfPath, "selftest", "attempt"},
		Dev:  t.pair.Dev, Index: i.Index, NearMAC: i.HardwareAddr, FarMAC: t.place.FarMAC,
		Near4: t.pair.Near4, Far4: t.pair.Far4, Near6: t.pair.Near6, Far6: t.pair.Far6, Port: selftestPort,
		Own: t.class[selftestMine], Other: t.class[selftestOther], Root: hierarchy.ID(0),
		Record: s.File(t.pair.Dev), Lock: s.LockFile(),
	}
	return nil
}

// program is this program, started by vifshape run in a branch.
func (t *trial) program(ctx context.Context, path hierarchy.Path, level escape.Level, user escape.User, args ...string) *exec.Cmd {
	argv := []string{"run", "--level", string(level)}
	if user == escape.Nobody {
		argv = append(argv, "--user", "65534:65534")
	}
	c := exec.CommandContext(ctx, selfPath, append(append(argv, string(path), "--", selfPath, "selftest"), args...)...)
	c.Args[0] = "vifshape"
	c.WaitDelay = time.Second // for children that hold the output
	return c
}

// serve starts the process in the other branch.
func (t *trial) serve(ctx context.Context, user escape.User) error {
	b, err := json.Marshal(t.place)
	if err != nil {
		return err
	}
	o := &outsider{Cmd: t.program(context.WithoutCancel(ctx), selftestOther, escape.Tag, user, "outsider", string(b))}
	var stderr strings.Builder
	o.Stderr = &stderr
	in, err := o.StdinPipe()
	if err != nil {
		return err
	}
	out, err := o.StdoutPipe()
	if err != nil {
		return err
	}
	o.in = in
	if err := t.pair.Near.Start(o.Cmd); err != nil {
		return err
	}
	t.outsider[user] = o
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("it ended: %s", strings.TrimSpace(stderr.String()))
	}
	return json.Unmarshal(line, &o.Served)
}

// find finds the cgroups of the branches, where their hierarchy is mounted, and the
// classifier.
func (t *trial) find() error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", t.outsider[escape.Root].Served.PID))
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || !strings.HasSuffix(f[2], string(selftestOther)) {
			continue
		}
		at := slices.IndexFunc(mounts, func(m *mountinfo.Info) bool {
			if f[1] == "" {
				return m.FSType == "cgroup2" && m.Root == "/"
			}
			return m.FSType == "cgroup" && m.Root == "/" && slices.Contains(strings.Split(m.VFSOptions, ","), strings.Split(f[1], ",")[0])
		})
		if at < 0 {
			continue
		}
		other := filepath.Join(mounts[at].Mountpoint, f[2])
		own := filepath.Join(strings.TrimSuffix(other, string(selftestOther)), string(selftestMine))
		t.place.OtherDirs = append(t.place.OtherDirs, other)
		t.place.OwnDirs = append(t.place.OwnDirs, own)
		// Some kernels have no numbers for the files of cgroup v1.
		if h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Join(other, "cgroup.procs"), 0); err == nil {
			t.place.Handles = append(t.place.Handles, escape.Handle{Mount: mounts[at].Mountpoint, Type: h.Type(), Bytes: h.Bytes()})
		}
	}
	t.dirs = append(slices.Clone(t.place.OwnDirs), t.place.OtherDirs...)
	d, err := tc.Find(t.conn, t.pair.Dev)
	if err != nil {
		return err
	}
	t.place.Program, err = hook.Of(d.Interface).EgressProgram()
	return err
}

// lacksLevel says why a level cannot be had here, for an honest program. That it
// fails otherwise is an error: what is promised was not tried.
func (t *trial) lacksLevel(ctx context.Context, level escape.Level) (string, error) {
	_, stderr, err := t.perform(ctx, "udp", level, escape.Root)
	_, why, lacks := strings.Cut(stderr, "vifshape: error: "+(&confine.LockError{}).Error())
	if err == nil || !lacks {
		return "", err
	}
	why, _, _ = strings.Cut(why, "\n")
	return why, nil
}

// perform makes an attempt and waits until all that it sent has left the queue.
func (t *trial) perform(ctx context.Context, name string, level escape.Level, user escape.User) (*escape.Outcome, string, error) {
	p := t.place
	p.Outsider = t.outsider[user].Served
	b, err := json.Marshal(p)
	if err != nil {
		return nil, "", err
	}
	var stdin *os.File
	var undo func()
	if err := t.pair.Near.Do(func() (err error) {
		stdin, undo, err = escape.Find(name).Ready(&p)
		return err
	}); err != nil {
		return nil, "", err
	}
	defer func() { _ = t.pair.Near.Do(func() error { undo(); return nil }) }() // nothing else fails
	if stdin == nil {
		stdin = t.open
	} else {
		defer stdin.Close()
	}
	limit, cancel := context.WithTimeout(ctx, selftestPatience)
	defer cancel()
	c := t.program(limit, selftestMine, level, user, "attempt", name, string(b))
	var out, errs strings.Builder
	c.Stdin, c.Stdout, c.Stderr = stdin, &out, &errs
	c.ExtraFiles = []*os.File{t.open}
	err = t.pair.Near.Start(c)
	if err == nil {
		err = c.Wait()
	}
	if ctx.Err() != nil {
		return nil, "", ctx.Err()
	}
	stderr := strings.TrimSpace(errs.String())
	if why, ok := strings.CutPrefix(stderr, "vifshape: error: standard input "); ok && err != nil && out.Len() == 0 {
		why, _, _ = strings.Cut(why, "\n")
		return &escape.Outcome{Call: "run", Err: "run: standard input " + why}, stderr, nil
	}
	if err != nil {
		return nil, stderr, fmt.Errorf("%w: %s", err, stderr)
	}
	o := &escape.Outcome{}
	if err := json.Unmarshal([]byte(out.String()), o); err != nil {
		return nil, stderr, fmt.Errorf("%w in %q, %s", err, out.String(), stderr)
	}
	return o, stderr, nil
}

// attempt makes one attempt in one case and judges it.
func (t *trial) attempt(ctx context.Context, a *escape.Attempt, c escape.Case, free map[string]*escape.Outcome) (r escapeResult, err error) {
	if t.spoilt {
		if err := t.renew(ctx); err != nil {
			return r, err
		}
	}
	before, err := t.counts(ctx)
	if err != nil {
		return r, err
	}
	o, _, err := t.perform(ctx, a.Name, c.Level, c.User)
	if err != nil {
		return r, err
	}
	after, err := t.counts(ctx)
	if err != nil {
		return r, err
	}
	less := func(a, b uint64) uint64 { return a - min(a, b) }
	n := escape.Counts{
		Own: less(after.Own, before.Own), Rest: less(after.Rest, before.Rest),
		Others: less(after.Others, before.Others), Arrived: after.Arrived - before.Arrived,
	}
	changed, err := t.changed(ctx)
	if err != nil {
		return r, err
	}
	r = escapeResult{Attempt: a.Name, Case: c, Outcome: *o, Counts: n}
	t.spoilt = t.spoilt || changed != "" || a.Spoils && o.Err == ""
	if c.Level == escape.Tag && c.User == escape.Root {
		free[a.Name] = o
	} else if free[a.Name] == nil && o.Unclear() {
		if t.spoilt {
			if err := t.renew(ctx); err != nil {
				return r, err
			}
		}
		if free[a.Name], _, err = t.perform(ctx, a.Name, escape.Tag, escape.Root); err != nil {
			return r, err
		}
		t.spoilt = t.spoilt || a.Spoils
	}
	r.Result = escape.Judge(a, c, o, free[a.Name], n, changed)
	return r, nil
}

// counts reads all counters as soon as they stand still.
func (t *trial) counts(ctx context.Context) (escape.Counts, error) {
	var last escape.Counts
	for still, end := 0, time.Now().Add(5*time.Second); still < 2 && time.Now().Before(end); {
		now, waiting, err := t.read()
		if err != nil {
			return now, err
		}
		if still++; waiting || now != last {
			still = 0
		}
		last = now
		select {
		case <-ctx.Done():
			return now, ctx.Err()
		case <-time.After(3 * time.Millisecond):
		}
	}
	return last, nil
}

// read reads them once. A tree that is gone counts nothing.
func (t *trial) read() (n escape.Counts, waiting bool, err error) {
	s, err := unix.GetsockoptTpacketStats(t.tap, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return n, false, os.NewSyscallError("getsockopt PACKET_STATISTICS", err)
	}
	t.arrived += uint64(s.Packets)
	n.Arrived = t.arrived
	d, err := tc.Find(t.conn, t.pair.Dev)
	if err != nil {
		return n, false, err
	}
	stats, err := d.Stats()
	if err != nil {
		return n, false, err
	}
	for _, s := range stats {
		waiting = waiting || s.QLen > 0
		switch s.Class {
		case t.class[selftestMine]:
			n.Own = s.Packets
		case t.class[selftestRest]:
			n.Rest = s.Packets
		case t.class[selftestOther]:
			n.Others = s.Packets
		}
	}
	return n, waiting, nil
}

// changed says what of the tree, or of what vifshape keeps, is not as it was applied.
func (t *trial) changed(ctx context.Context) (string, error) {
	stored, err := t.keeps()
	if err != nil {
		return "", err
	}
	for name, what := range stored {
		if what != t.stored[name] {
			// it may be one that nobody comes to the end of
			return "the run directory was changed: " + name, record.UnlessGone(os.Remove(filepath.Join(t.store.Dir, name)))
		}
	}
	if len(stored) < len(t.stored) {
		return "the run directory was changed", nil
	}
	f, err := t.store.TryLock(t.store.LockFile(), "selftest")
	if err != nil {
		return "", err
	}
	if f == nil {
		return "the lock of all writers is held", nil
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	now, err := t.plan(ctx)
	if errors.As(err, new(shaper.ForeignRootError)) {
		return "the tree was replaced", nil
	}
	if err != nil || now == t.planned {
		return "", err
	}
	return "the tree was changed: " + now, nil
}

// keeps is what is in the run directory, by name.
func (t *trial) keeps() (map[string]string, error) {
	ents, err := os.ReadDir(t.store.Dir)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, e := range ents {
		if !e.Type().IsRegular() {
			all[e.Name()] = e.Type().String()
			continue
		}
		b, err := os.ReadFile(filepath.Join(t.store.Dir, e.Name()))
		if err != nil {
			return nil, err
		}
		all[e.Name()] = e.Type().String() + string(b)
	}
	return all, nil
}

// plan is what vifshape plan says, in one line.
func (t *trial) plan(ctx context.Context) (string, error) {
	e := *t.env
	var out strings.Builder
	e.stdout = &out
	err := t.pair.Near.Do(func() error { return e.plan(ctx, t.file, planOptions{binding: t.binding}) })
	return strings.Join(strings.Fields(out.String()), " "), err
}

// renew makes the network anew.
func (t *trial) renew(ctx context.Context) error {
	if err := t.close(); err != nil {
		return err
	}
	*t = trial{env: t.env, binding: t.binding, tap: -1, outsider: map[escape.User]*outsider{}}
	return t.make(ctx)
}

// close removes everything.
func (t *trial) close() error {
	var errs []error
	for _, o := range t.outsider {
		o.in.Close()
		_ = o.Wait() // how it ends does not matter
	}
	errs = append(errs, t.kill())
	if t.open != nil {
		errs = append(errs, t.open.Close())
	}
	if t.tap >= 0 {
		errs = append(errs, unix.Close(t.tap))
	}
	if t.conn != nil {
		errs = append(errs, t.conn.Close())
	}
	if t.sink != nil {
		errs = append(errs, t.sink.Close())
	}
	if t.pair != nil {
		if t.pair.Near != nil {
			errs = append(errs, t.vacate(t.pair.Near))
		}
		errs = append(errs, t.pair.Close())
	}
	return errors.Join(errs...)
}

// kill ends what is left in the branches, and waits until it has gone.
func (t *trial) kill() error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		left := 0
		for _, d := range t.dirs {
			b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
					left++
					_ = unix.Kill(pid, unix.SIGKILL) // it may have gone
				}
			}
		}
		if left == 0 || time.Now().After(end) {
			return nil
		}
	}
}

// names of verdicts, in the order in which they are counted
var verdicts = []escape.Verdict{escape.Held, escape.Refused, escape.Open, escape.Impossible, escape.NotTried, escape.Escaped, escape.Failed}

// reasons are those of open and impossible, each once.
func reasons(x *escapes) []string {
	why := map[string]bool{}
	for _, r := range x.Results {
		if a := escape.Find(r.Attempt); r.Verdict == escape.Open || r.Verdict == escape.Impossible {
			why[string(r.Verdict)+": "+a.Hole(r.Case).Why] = true
		}
	}
	return slices.Sorted(maps.Keys(why))
}
