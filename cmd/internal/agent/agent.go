// Package agent keeps the bindings of all interfaces of a network namespace up to date: it
// watches what they go by, cgroups, interfaces and the files of container runtimes, and what
// the records say; and it answers users to whom branches are delegated, at the socket that
// package client asks. There is one agent in a network namespace; it takes root.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/internal/enabled"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// agent keeps the bindings of all interfaces of a network namespace up to date. Its
// methods are for one goroutine; petitions has its own.
type agent struct {
	log  *slog.Logger
	said *remarks
	cfg  Config
	m    *shaper.Machine
	hold *os.File // the agent's lock
	asks *petitions
	dirs *inotify
	link *rtnl.Monitor[link.Event]
	loss *rtnl.Monitor[tc.Change]
	// route is nil until a policy goes by default routes; around is when they, and the speed of
	// links, are looked at.
	route  *rtnl.Monitor[link.RouteEvent]
	routes chan []link.RouteEvent
	around <-chan time.Time
	broken chan error // why something tells no more

	runDir     int                 // the watch of the run directory
	lockDir    int                 // and of its locks
	interfaces map[string]*watched // by name: those with a record
	seen       map[int]seen        // interfaces of the network namespace by index
	dirty      map[string]bool     // interfaces that have to be looked at
	altered    map[string]bool     // those of which something was made or changed, and nothing lost
	ended      chan struct{}       // closed when it ends
	later      chan string         // interfaces that have to be looked at again by then
	anew       chan string         // and those that have to be shaped
	lasting    lasting
	ready      bool // all was looked at once

	policiesDir int              // the watch of the directory of policies
	aboveDir    int              // and of the one above
	overDirs    map[int]string   // and of those below it with what is laid over policies
	reread      <-chan time.Time // when it is read again
	trial       *trial           // an apply that stays if the contact can be reached; nil: none
	held        chan bool        // whether it could be

	limits  *time.Timer
	limited bool // something of limits is due
	orphans bool // an interface went for which another one received
}

// seen is an interface as it was last seen.
type seen struct {
	traits   string
	receives int    // the index of the interface for which it carries what that receives; 0: none
	mtu      int    // by which bursts and queues are worked out
	mac      string // by which a policy may name it
}

// watched is an interface with what its bindings depend on.
type watched struct {
	whole   places          // of the last look that came to its end
	part    places          // of one after it, that failed on its way
	said    string          // the last error, so that it is said once
	missing map[string]bool // what was said of bindings, for the same
	waiting int             // bindings
	again   *time.Timer     // until later tells of it, nil: it does not
	due     time.Time       // when that is
	whether bool            // all that the record tells of is there has to be seen, not bindings alone
	repairs repairs
	pace    pace
}

// places are those where a change matters to an interface's bindings.
type places struct {
	dirs  map[int][]func(string) bool // by watch: which entries
	links []func(string) bool         // which interfaces
}

// Config is how an agent works.
type Config struct {
	RunDir string
	Log    io.Writer // one line for each thing that is said
	Level  slog.Level
	Repair bool // what others take away of a tree is put back
	// Policies is a directory of policies, see package enabled, that are applied at the start,
	// when everything is read anew, and to interfaces of theirs that appear; empty: none.
	Policies string
	// Follow has them applied whenever the directory changes, too.
	Follow bool
	// Contact is the address, as host:port, that has to be reached within the time of Confirm
	// after something was applied; else it goes back to what was before. Empty: what is applied
	// stays. Guard is the process that sees to it where the agent is gone, see
	// [shaper.ApplyOptions].
	Contact string
	Confirm time.Duration
	Guard   func() *exec.Cmd
	// Code and Hints say what an error means to who asked: an exit status of vifshape
	// and the ways on.
	Code  func(error) int
	Hints func(error) []string
}

// Run is the agent of the network namespace that the program runs in until ctx ends, which
// is no error. Again has everything read anew, and what is wrong said once more. There is
// one agent: it fails with a [record.RunningError] where there is another. It takes root.
func Run(ctx context.Context, cfg Config, again <-chan os.Signal) error {
	a, err := newAgent(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(a.serve(ctx, again), a.close())
}

func newAgent(ctx context.Context, cfg Config) (*agent, error) {
	options := &slog.HandlerOptions{Level: cfg.Level}
	if os.Getenv("JOURNAL_STREAM") != "" { // the journal has the time
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	a := &agent{
		log: slog.New(slog.NewTextHandler(cfg.Log, options)), cfg: cfg, runDir: -1, lockDir: -1, policiesDir: -1, aboveDir: -1, held: make(chan bool),
		interfaces: map[string]*watched{}, seen: map[int]seen{}, dirty: map[string]bool{}, altered: map[string]bool{}, later: make(chan string), anew: make(chan string), ended: make(chan struct{}),
		routes: make(chan []link.RouteEvent), broken: make(chan error, 4),
	}
	a.lasting = lasting{dir: enabled.Dir{Path: cfg.Policies}, due: due{all: cfg.Policies != ""}, tries: map[string]*repairs{}, again: map[string]*time.Timer{}, waits: map[string]bool{}, said: map[string]string{}, of: map[string]string{}, refused: map[string]string{}}
	a.limits = time.NewTimer(limitsPause)
	a.said = &remarks{log: a.log, said: map[string]bool{}}
	var err error
	if a.m, err = shaper.Open(cfg.RunDir, a.said.tell); err != nil {
		return nil, err
	}
	a.m.Store.Saved = map[string]os.FileInfo{}
	if err = a.open(ctx); err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

func (a *agent) open(ctx context.Context) (err error) {
	if a.dirs, err = newInotify(); err != nil {
		return err
	}
	if a.link, err = link.Watch(rtnl.Config{}); err != nil {
		return err
	}
	if a.loss, err = tc.WatchChanges(rtnl.Config{}, a.m.Conn); err != nil {
		return err
	}
	if err = a.followDir(); err != nil {
		return err
	}
	return a.take(ctx)
}

// take makes this the agent of the network namespace, and watches the run
// directory, which may have been removed.
func (a *agent) take(ctx context.Context) error {
	unlock, err := a.m.Store.Lock(ctx, "agent")
	if err != nil {
		return err
	}
	defer unlock()
	if a.hold == nil || !a.m.Store.AgentHeld(a.hold) {
		f, err := a.m.Store.TakeAgent()
		if err != nil {
			return err
		}
		if a.hold != nil {
			a.hold.Close()
		}
		a.hold = f
	}
	if err := a.m.Store.SetEnabled(nil); err != nil { // of one that was killed
		return err
	}
	a.lasting.told = nil
	if a.asks != nil {
		a.asks.close()
	}
	if a.asks, err = newPetitions(a.m, a.cfg, a.said); err != nil {
		return err
	}
	if a.lockDir, err = a.dirs.add(a.m.Store.Locks, unix.IN_DELETE|unix.IN_DELETE_SELF|unix.IN_ONLYDIR); err != nil {
		return err
	}
	if a.runDir, err = a.dirs.add(a.m.Store.Dir, unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_DELETE_SELF|unix.IN_ONLYDIR); err != nil {
		return err
	}
	// From now on it is told when these go. Of a directory that was emptied before, and went since, it is
	// not: the socket holds that.
	if !a.m.Store.AgentHeld(a.hold) || !a.m.Store.Reachable() {
		return fmt.Errorf("%s: its lock or socket went while it was taken: %w", a.m.Store.Dir, fs.ErrNotExist)
	}
	return nil
}

// close lets go of everything; what is bound stays bound.
func (a *agent) close() error {
	var errs []error
	if a.asks != nil {
		a.asks.close()
	}
	if a.hold != nil {
		errs = append(errs, a.m.Store.SetEnabled(nil), a.leave())
	}
	if a.link != nil {
		errs = append(errs, a.link.Close())
	}
	if a.loss != nil {
		errs = append(errs, a.loss.Close())
	}
	if a.route != nil {
		errs = append(errs, a.route.Close())
	}
	if a.dirs != nil {
		errs = append(errs, a.dirs.close())
	}
	return errors.Join(append(errs, a.m.Close())...)
}

// leave removes the agent's files, unless they are another agent's by now, and the run
// directory where nothing else is in it. Who changes something just now does the latter.
func (a *agent) leave() error {
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	var err error
	if a.m.Store.AgentHeld(a.hold) {
		err = errors.Join(record.UnlessGone(os.Remove(a.m.Store.AgentSocketFile())), record.UnlessGone(os.Remove(a.m.Store.AgentFile())))
	}
	err = errors.Join(err, a.hold.Close())
	if unlock, lerr := a.m.Store.Lock(ctx, "agent"); lerr == nil {
		unlock()
	}
	return err
}

// serve is the agent's life. Its end by ctx is no error.
func (a *agent) serve(ctx context.Context, again <-chan os.Signal) error {
	notices, links, losses := make(chan []notice), make(chan []link.Event), make(chan []tc.Change)
	defer close(a.ended)
	go forward(a.ended, notices, a.broken, a.dirs.read)
	go forward(a.ended, links, a.broken, unlessMissed(ctx, a.link.Receive))
	go forward(a.ended, losses, a.broken, unlessMissed(ctx, a.loss.Receive))

	a.everything()
	if err := a.work(ctx); err != nil {
		return err
	}
	a.ready = true
	a.tell("READY=1", a.status())
	a.log.Info("ready", "interfaces", len(a.interfaces))
	for {
		var err error
		select {
		case <-ctx.Done():
			return a.ends()
		case err = <-a.broken:
			if ctx.Err() != nil {
				return a.ends()
			}
			return err
		case <-again:
			state, err := reloading()
			if err != nil {
				return err
			}
			a.tell(state...)
			a.forget()
			a.everything()
			if err := a.work(ctx); err != nil {
				return err
			}
			a.tell("READY=1", a.status())
			continue
		case all := <-notices:
			err = a.noticed(ctx, all)
		case all := <-links:
			a.linked(all)
		case all := <-losses:
			a.changed(all)
		case <-a.routes:
			a.looksAround()
		case <-a.around:
			a.around = nil
			a.looksAtRoutes()
			a.lasting.due.add(a.otherSpeeds()...)
		case <-a.reread:
			a.reread = nil
			a.lasting.due.all = true
		case held := <-a.held:
			a.judge(ctx, held)
			a.lasting.due.all = true
		case name := <-a.later:
			if w := a.interfaces[name]; w != nil {
				a.dirty[name] = true
			}
		case name := <-a.anew:
			if name != "" {
				a.lasting.due.add(name)
			}
		case <-a.limits.C:
			a.lookAtLimits()
		}
		if err == nil && (a.limited || len(a.dirty) > 0 || len(a.altered) > 0 || a.orphans || !a.lasting.due.empty()) {
			before := a.status()
			err = a.work(ctx)
			if now := a.status(); now != before {
				a.tell(now)
			}
		}
		if err != nil {
			return err
		}
	}
}

// ends says that the agent was told to end.
func (a *agent) ends() error {
	a.tell("STOPPING=1")
	a.log.Info("ends")
	return nil
}

// forward passes on what read returns until it fails or the agent ended.
func forward[T any](ended <-chan struct{}, to chan<- []T, failed chan<- error, read func() ([]T, error)) {
	for {
		all, err := read()
		if err != nil {
			failed <- err
			return
		}
		select {
		case to <- all:
		case <-ended:
			return
		}
	}
}

// unlessMissed is what receive returns; none at all when something was missed.
func unlessMissed[T any](ctx context.Context, receive func(context.Context) ([]T, error)) func() ([]T, error) {
	return func() ([]T, error) {
		all, err := receive(ctx)
		if errors.Is(err, rtnl.ErrMissed) {
			return nil, nil
		}
		return all, err
	}
}

// everything marks all interfaces.
func (a *agent) everything() {
	names, err := a.m.Store.Interfaces()
	if err != nil {
		a.log.Error("the run directory cannot be read", "error", err)
		return
	}
	for name := range a.interfaces {
		if !slices.Contains(names, name) {
			a.drop(name)
		}
	}
	for _, name := range names {
		a.dirty[name] = true
		if w := a.interfaces[name]; w != nil {
			w.whether = true
		}
	}
	if links, err := link.List(a.m.Conn); err != nil {
		a.log.Error("interfaces cannot be listed", "error", err)
	} else {
		was := a.seen
		a.seen = make(map[int]seen, len(links))
		for _, l := range links {
			a.sees(l, was[l.Index])
		}
		a.orphans = true // some may have been left before it was watched
	}
}

// forget makes the agent say again what is wrong.
func (a *agent) forget() {
	a.said.forget()
	a.m.Anew()
	for _, w := range a.interfaces {
		w.said, w.missing = "", nil
	}
	clear(a.lasting.said)
	clear(a.lasting.refused)
	a.lasting.due.all = a.cfg.Policies != ""
}

// noticed takes changes of files in.
func (a *agent) noticed(ctx context.Context, all []notice) error {
	for _, n := range all {
		if n.wd == a.policiesDir || n.wd == a.aboveDir || a.overDirs[n.wd] != "" {
			a.policiesNoticed(n) // bindings may go by the same: /etc/passwd lies beside /etc/vifshape
		}
		switch {
		case n.lost():
			a.log.Warn("changes of directories came faster than they could be read: all is read anew")
			a.everything()
			a.lasting.due.all = a.lasting.due.all || a.cfg.Follow
		case n.wd == a.runDir, n.wd == a.lockDir:
			if err := a.recorded(ctx, n); err != nil {
				return err
			}
		case n.mask&unix.IN_IGNORED == 0: // else it went, which the directory above has told
			for name, w := range a.interfaces {
				if (matters(w.whole.dirs[n.wd], n.name) || matters(w.part.dirs[n.wd], n.name)) && a.now(name) {
					a.mark(name, n.name)
				}
			}
		}
	}
	return nil
}

// recorded takes in what became of the run directory. A directory that is removed goes
// no sooner than the agent's socket in it, which the agent holds.
func (a *agent) recorded(ctx context.Context, n notice) error {
	a.lasting.due.add(slices.Collect(maps.Keys(a.lasting.waits))...) // it may be confirmed by now
	gone := n.mask&(unix.IN_DELETE_SELF|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0
	if gone || n.name == filepath.Base(a.m.Store.AgentFile()) || n.name == record.AgentSocket {
		if !gone && a.m.Store.AgentHeld(a.hold) && a.m.Store.Reachable() { // its own, after one before it
			return nil
		}
		a.log.Warn("somebody removed the run directory, or the agent's lock or socket: it is made anew", "directory", a.m.Store.Dir)
		err := a.take(ctx)
		// Whoever removes it may not be through with that.
		for deadline := time.Now().Add(time.Second); errors.Is(err, fs.ErrNotExist) && time.Now().Before(deadline); err = a.take(ctx) {
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			return err
		}
		a.everything()
		return nil
	}
	name, ok := strings.CutSuffix(n.name, record.Suffix)
	switch {
	case n.name == record.PodsFile:
		a.limits.Reset(limitsPause) // some may be over, where there is no interface to look at, too
		for name, w := range a.interfaces {
			a.again(name, w, podsPause)
		}
	case !ok:
	case n.mask&unix.IN_DELETE != 0:
		a.drop(name)
	case a.wrote(name):
	case a.asks.pods() && a.interfaces[name] != nil:
		a.interfaces[name].whether = true
		a.again(name, a.interfaces[name], podsPause)
	default:
		a.mark(name, n.name)
	}
	return nil
}

// wrote says whether an interface's record is as the agent left it.
func (a *agent) wrote(name string) bool {
	mine := a.m.Store.Saved[name]
	if mine == nil {
		return false
	}
	now, err := os.Lstat(a.m.Store.File(name))
	return err == nil && os.SameFile(now, mine) && now.ModTime().Equal(mine.ModTime())
}

// drop ends what was done for an interface.
func (a *agent) drop(name string) {
	w := a.interfaces[name]
	if w == nil {
		return
	}
	delete(a.interfaces, name)
	delete(a.dirty, name)
	delete(a.altered, name)
	delete(a.m.Store.Saved, name)
	a.unwatch(w.whole, w.part)
	a.log.Info("not shaped any more", "interface", name)
}

// unwatch ends the watches that no interface needs.
func (a *agent) unwatch(all ...places) {
	for _, p := range all {
		for wd := range p.dirs {
			if !a.needs(wd) {
				a.dirs.remove(wd)
			}
		}
	}
}

// needs says whether the agent or any interface has use for a watch.
func (a *agent) needs(wd int) bool {
	if slices.Contains([]int{a.runDir, a.lockDir, a.policiesDir, a.aboveDir}, wd) || a.overDirs[wd] != "" {
		return true
	}
	for _, w := range a.interfaces {
		if w.whole.dirs[wd] != nil || w.part.dirs[wd] != nil {
			return true
		}
	}
	return false
}

// linked takes changes of interfaces in. None at all: some were missed.
func (a *agent) linked(all []link.Event) {
	a.looksAround()
	if len(all) == 0 {
		a.log.Warn("changes of interfaces came faster than they could be read: all is read anew")
		a.everything()
	}
	for _, e := range all {
		was, is := a.seen[e.Link.Index], seen{}
		if e.Gone {
			delete(a.seen, e.Link.Index)
			if a.lasting.of[e.Link.Name] != "" {
				a.lasting.due.add(e.Link.Name) // what was wrong with it is no more
			}
			a.orphans = a.orphans || a.receiver(e.Link.Index)
		} else if is = a.sees(e.Link, was); is == was {
			continue // its carrier, its queues, its counters
		}
		if of := cmp.Or(is.receives, was.receives); of != 0 {
			a.loses(of)
		}
		names := append(strings.Fields(was.traits), strings.Fields(is.traits)...)
		for name, w := range a.interfaces {
			if slices.Contains(names, name) || slices.ContainsFunc(names, func(n string) bool { return matters(w.whole.links, n) || matters(w.part.links, n) }) {
				a.mark(name, e.Link.Name)
			}
		}
	}
}

// sees notes what an interface is. One that is new, or not what it was, may have to be shaped.
func (a *agent) sees(l link.Link, was seen) (is seen) {
	is = seen{traits(l), l.Receives, l.MTU, l.MAC}
	a.seen[l.Index] = is
	if is != was && l.Receives == 0 && a.cfg.Policies != "" {
		a.lasting.due.add(l.Name)
	}
	return is
}

// changed takes in of which interfaces queues have changed. None at all: some were missed. Of a
// class that anybody asks for, everybody is told; of what goes, and of filters, who may change them.
func (a *agent) changed(all []tc.Change) {
	if len(all) == 0 {
		a.log.Warn("changes of queues came faster than they could be read: all is read anew")
		for name, w := range a.interfaces {
			if w.whether = true; a.now(name) {
				a.mark(name, "a loss")
			}
		}
	}
	for _, c := range all {
		index := cmp.Or(a.seen[c.Index].receives, c.Index)
		if c.Gone {
			a.loses(index)
		} else if name := a.shaped(index); name != "" {
			if a.now(name) {
				a.altered[name] = true
			} else {
				a.interfaces[name].whether = true
			}
		}
	}
}

// now says whether an interface may be looked at at once. Where that has taken much time lately
// it is looked at in a while.
func (a *agent) now(name string) bool {
	w := a.interfaces[name]
	wait := w.pace.wait(time.Now())
	if wait > 0 {
		a.again(name, w, wait)
	}
	return wait <= 0
}

// loses has an interface looked at that may have lost something.
func (a *agent) loses(index int) {
	if name := a.shaped(index); name != "" {
		a.mark(name, "a loss")
	}
}

// shaped is the name of an interface that has a record; empty: it has none.
func (a *agent) shaped(index int) string {
	if names := strings.Fields(a.seen[index].traits); len(names) > 0 && a.interfaces[names[0]] != nil {
		return names[0]
	}
	return ""
}

// receiver says whether there is an interface that carries what another one receives.
func (a *agent) receiver(of int) bool {
	for _, s := range a.seen {
		if s.receives == of {
			return true
		}
	}
	return false
}

// mark has an interface looked at.
func (a *agent) mark(name, because string) {
	a.dirty[name] = true
	if w := a.interfaces[name]; w != nil && (because == name+record.Suffix || because == "a loss" || because == name) {
		w.whether = true
	}
	a.log.Debug("changed", "interface", name, "by", because)
}

// traits tell what bindings may go by: the names of an interface, whose port it is, and
// in which network namespace its other end is; and whether packets get through one that
// carries what another receives. A name has no space in it (dev_valid_name, net/core/dev.c, v6.12).
func traits(l link.Link) string {
	if l.Receives != 0 {
		return fmt.Sprintf("%s sound/%t", l.Name, l.Sound())
	}
	return fmt.Sprintf("%s master/%d netns/%d", strings.Join(append([]string{l.Name}, l.AltNames...), " "), l.Master, l.LowerNetNS)
}

// matters says whether an entry is one of those that were asked for; a nil function
// asks for the file itself.
func matters(all []func(string) bool, name string) bool {
	return slices.ContainsFunc(all, func(f func(string) bool) bool { return f == nil || f(name) })
}

// work looks at the interfaces that are marked. What is wrong with one is logged, and
// may be better next time; only at the start a lack of privileges is an error.
func (a *agent) work(ctx context.Context) error {
	a.restore(ctx)
	unlock, err := a.m.Store.Lock(ctx, "agent")
	for locked := (*record.LockedError)(nil); errors.As(err, &locked); {
		a.log.Warn("bindings wait", "error", err)
		unlock, err = a.m.Store.Lock(ctx, "agent")
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil // serve ends
		}
		return err
	}
	defer unlock()
	if a.orphans {
		a.orphans = false
		if err := a.m.Sweep(); err != nil {
			a.said.tell(shaper.Remark{Level: shaper.Warning, Text: err.Error()})
		}
	}
	for name := range a.altered {
		// To rebind is to ask for classes, of which the kernel tells everybody: who asks
		// because of that would never end.
		w, begun := a.interfaces[name], time.Now()
		if err := a.m.Intact(ctx, name); err != nil || w.said != "" {
			a.mark(name, "a loss")
		}
		w.pace.looked(time.Now(), time.Since(begun))
	}
	clear(a.altered)
	a.keepLimits(ctx)
	looked := len(a.dirty) > 0
	for _, name := range slices.Sorted(maps.Keys(a.dirty)) {
		delete(a.dirty, name)
		if _, err := os.Lstat(a.m.Store.File(name)); errors.Is(err, fs.ErrNotExist) {
			a.drop(name)
			continue
		}
		// What was begun is finished: it takes moments.
		if err := a.rebind(context.WithoutCancel(ctx), name); err != nil {
			return err
		}
	}
	if looked { // the policy may be another one
		if err := a.m.KeepPods(context.WithoutCancel(ctx)); err != nil {
			a.warn(err)
		}
	}
	return nil
}

// limitsPause is how long after one look at limits the next is, where they may become due by
// themselves.
const limitsPause = time.Second

// lookAtLimits notes whether something of limits is due.
func (a *agent) lookAtLimits() {
	due, watch, err := a.m.LimitsDue()
	if err != nil {
		a.warn(err)
	}
	if a.limited = due; watch {
		a.limits.Reset(limitsPause)
	}
}

// keepLimits does what is due of limits. The caller holds the lock.
func (a *agent) keepLimits(ctx context.Context) {
	if a.lookAtLimits(); !a.limited {
		return
	}
	a.limited = false
	if err := a.m.KeepLimits(context.WithoutCancel(ctx)); err != nil {
		a.warn(err)
	}
}

func (a *agent) rebind(ctx context.Context, name string) error {
	w := a.interfaces[name]
	if w == nil {
		w = &watched{whether: true}
		a.interfaces[name] = w
		a.log.Info("watches", "interface", name)
	}
	w.rest()
	begun := time.Now()
	defer func() { w.pace.looked(time.Now(), time.Since(begun)) }()
	look := places{dirs: map[int][]func(string) bool{}}
	done, err := a.look(ctx, name, w, func(path string, m func(string) bool) { a.place(&look, path, m) })
	whole, part := w.whole, w.part
	if w.part = look; err == nil {
		w.whole, w.part = look, places{}
	} // else it may not have come to all places, and those of before count, too
	a.unwatch(whole, part)
	if done != nil {
		a.report(name, w, done)
	}
	said := ""
	if err != nil {
		said = err.Error()
	}
	if said != "" && said != w.said {
		a.warn(err)
	}
	w.said = said
	if !a.ready && shaper.NotPrivileged(err) {
		return err
	}
	return nil
}

// warn logs an error, with what there is to add, and the first way on.
func (a *agent) warn(err error, more ...any) {
	if do := a.cfg.Hints(err); len(do) > 0 {
		more = append(more, "do", do[0])
	}
	a.log.Warn(strings.TrimSpace(err.Error()), more...)
}

// look brings the bindings of an interface up to date. Where it may be that something
// of it is lost that is said besides, and put back where that is wanted.
func (a *agent) look(ctx context.Context, name string, w *watched, watch resolve.Watch) (*shaper.Rebound, error) {
	if !w.whether {
		return a.m.Rebind(ctx, name, watch)
	}
	lost := a.m.Intact(ctx, name)
	if a.cfg.Repair && errors.As(lost, new(*shaper.LostError)) {
		lost = a.putBack(ctx, name, w, lost)
	}
	if lost != nil && !errors.As(lost, new(*shaper.LostError)) {
		return nil, lost // and so it is not known what to bind
	}
	w.whether = lost != nil
	done, err := a.m.Rebind(ctx, name, watch)
	if lost != nil && (err == nil || errors.As(err, new(*shaper.LostError))) {
		err = lost
	}
	return done, err
}

// putBack makes a tree again that was lost, unless that has just been done: somebody may
// take it away again and again. What it returns is what is lost still.
func (a *agent) putBack(ctx context.Context, name string, w *watched, lost error) error {
	if wait := w.repairs.wait(time.Now()); wait > 0 {
		a.again(name, w, wait)
		return fmt.Errorf("%w; after %s to put it back the next is in %v", lost, words.Number(w.repairs.count, "try", "tries"), w.repairs.delay())
	}
	w.repairs.done(time.Now())
	if err := a.m.Reapply(ctx, name); err != nil {
		a.again(name, w, w.repairs.wait(time.Now()))
		return fmt.Errorf("%w; it cannot be put back: %w", lost, err)
	}
	a.log.Warn("put back what was lost", "interface", name, "lost", strings.Join(lost.(*shaper.LostError).What, "; "))
	return nil
}

// again has an interface looked at after a time, if it is not before.
func (a *agent) again(name string, w *watched, after time.Duration) {
	due := time.Now().Add(after)
	if w.again != nil && !due.Before(w.due) {
		return
	}
	w.rest()
	w.due = due
	w.again = a.remind(after, a.later, name)
}

// remind tells the agent of an interface after a time.
func (a *agent) remind(after time.Duration, to chan<- string, name string) *time.Timer {
	return time.AfterFunc(after, func() {
		select {
		case to <- name:
		case <-a.ended:
		}
	})
}

// rest ends the waiting for another look.
func (w *watched) rest() {
	if w.again != nil {
		w.again.Stop()
		w.again = nil
	}
}

// repairs are those of one interface. Each waits twice as long as the one before it,
// until there was none for a while.
type repairs struct {
	count int
	last  time.Time
}

const (
	firstPause  = time.Second
	longestWait = 10 * time.Minute
)

// delay is the least time between the last one and the next.
func (r *repairs) delay() time.Duration {
	if r.count == 0 {
		return 0
	}
	return min(firstPause<<min(r.count-1, 30), longestWait)
}

// wait is how much of it is left.
func (r *repairs) wait(now time.Time) time.Duration {
	if now.Sub(r.last) >= 2*longestWait {
		r.count = 0
	}
	return max(0, r.delay()-now.Sub(r.last))
}

func (r *repairs) done(now time.Time) { r.count, r.last = r.count+1, now }

// place notes what the bindings of an interface depend on.
func (a *agent) place(p *places, path string, m func(string) bool) {
	if path == "" {
		p.links = append(p.links, m)
		return
	}
	mask := uint32(unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ONLYDIR)
	if m == nil {
		mask = unix.IN_MODIFY
	}
	wd, err := a.dirs.add(path, mask)
	switch {
	case err == nil:
		p.dirs[wd] = append(p.dirs[wd], m)
	case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR): // the directory above tells when it comes
		a.said.tell(shaper.Remark{Level: shaper.Warning, Text: err.Error()})
	}
}

// report logs what was done, and what waits.
func (a *agent) report(name string, w *watched, r *shaper.Rebound) {
	const most = 10 // of a burst
	for i, s := range r.Done {
		if i == most {
			a.log.Info("and more", "interface", name, "changes", len(r.Done)-most)
			break
		}
		b, ok := s.Item().(*hierarchy.Bound)
		if !ok {
			continue
		}
		if s.Action == hierarchy.Delete { // the kernel does not know by which binding it was
			a.log.Info("no longer bound", "interface", name, "target", b.Target, "branch", b.Path)
		} else {
			a.log.Info("bound", "interface", name, "target", b.Target, "branch", b.Path, "binding", b.From)
		}
	}
	missing := map[string]bool{}
	say := func(path hierarchy.Path, b string, level slog.Level, text string) {
		key := fmt.Sprintf("%s %s %s", path, b, text)
		missing[key] = true
		if !w.missing[key] {
			a.log.Log(context.Background(), level, text, "branch", path, "binding", b)
		}
	}
	for _, p := range r.Pending {
		say(p.Path, p.Binding.String(), slog.LevelInfo, "waits: "+p.Reason)
	}
	for _, o := range r.Outside {
		say(o.Path, shaper.BindingText(o.Binding), slog.LevelWarn, "does not hold all of it: "+o.String())
	}
	for _, x := range r.Refused {
		say(x.Path, shaper.BindingText(x.Binding), slog.LevelWarn, x.Err.Error())
	}
	w.missing, w.waiting = missing, len(r.Pending)
	if r.Again > 0 {
		a.again(name, w, r.Again)
	}
}

// status is what systemctl shows.
func (a *agent) status() string {
	waiting, wrong := 0, 0
	for _, w := range a.interfaces {
		waiting += w.waiting
		if w.said != "" {
			wrong++
		}
	}
	text := "STATUS=" + words.Number(len(a.interfaces), "interface", "interfaces")
	if waiting > 0 {
		text += fmt.Sprintf(", %s for what is not there yet", words.Number(waiting, "binding waits", "bindings wait"))
	}
	if wrong > 0 {
		text += fmt.Sprintf(", %s: see the log", words.Number(wrong, "error", "errors"))
	}
	return text
}

// tell tells systemd, which does without it if need be.
func (a *agent) tell(state ...string) {
	if err := notifySystemd(state...); err != nil {
		a.log.Warn(err.Error())
	}
}

// remarks logs what is told, each remark once.
type remarks struct {
	log  *slog.Logger
	mu   sync.Mutex
	said map[string]bool
}

// forget has them said once more.
func (r *remarks) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.said)
}

// tell logs a remark that was not said yet.
func (r *remarks) tell(x shaper.Remark) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.said) > 1000 {
		clear(r.said)
	}
	if r.said[x.Text] {
		return
	}
	r.said[x.Text] = true
	level := slog.LevelInfo
	if x.Level == shaper.Warning {
		level = slog.LevelWarn
	}
	r.log.Log(context.Background(), level, x.Text)
}
