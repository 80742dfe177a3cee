package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/enabled"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// lasting are the enabled policies, and what has to be done about them.
type lasting struct {
	dir   enabled.Dir
	due   due
	tries map[string]*repairs    // by interface, of those that could not be shaped
	again map[string]*time.Timer // until they are due again; empty: what is due already
	waits map[string]bool        // interfaces that wait until an apply is confirmed
	said  map[string]string      // by file or interface, its last error
	of    map[string]string      // and of which file that is

	byRoute bool                        // some policy names an interface by the default route
	uplinks []int                       // the indices of those that it goes by
	byLink  bool                        // some policy has a rate that is a share of the link
	speeds  map[int]hierarchy.Bandwidth // of links by index, as long as that was known

	refused map[string]string // by interface, what it went back from
	told    []record.Enabled  // what was saved of them last
}

// due are interfaces for which enabled policies have to be brought into force.
type due struct {
	all   bool
	names map[string]bool // that appeared, or are not any more what they were
}

func (d *due) empty() bool { return !d.all && len(d.names) == 0 }

func (d *due) add(names ...string) {
	if d.names == nil {
		d.names = map[string]bool{}
	}
	for _, n := range names {
		d.names[n] = true
	}
}

// restore brings enabled policies into force, of the interfaces that are due: each by itself,
// as one that cannot be shaped must not keep the others from it. What is wrong is logged, and
// tried again, later each time.
func (a *agent) restore(ctx context.Context) {
	l := &a.lasting
	if l.due.empty() || a.trial != nil { // all is looked at when that is over
		return
	}
	now := l.due
	l.due = due{}
	files, links, err := a.wanted(ctx, now)
	if err != nil {
		a.failed(l.dir.Path, l.dir.Path, err)
		l.due = now
		a.tryAgain("")
		return
	}
	delete(l.said, l.dir.Path)
	defer a.tells(ctx, files)
	a.forgets(now, files, links)
	if now.all {
		a.withdraw(ctx, files)
	}
	for _, f := range files {
		if f.Err != nil {
			a.failed(f.Path, f.Path, f.Err)
			continue
		}
		delete(l.said, f.Path)
		if now.all { // says what waits, and what the policy may not mean
			if c, err := a.bring(ctx, f.Path, shaper.ApplyOptions{Scope: shaper.Scope{Only: func(link.Link) bool { return false }, Waits: true}}); errors.Is(err, errAltered) {
				a.allAgain()
			} else if err != nil {
				a.failed(f.Path, f.Path, err)
			} else {
				c.Close()
			}
		}
		for _, x := range links {
			if x.Receives == 0 && files.Owner(x.Identity(l.uplinks)) == f.Path {
				a.apply(ctx, f, x)
			}
		}
		if f.Policy.ByRoute() {
			a.follow(ctx, f.Path)
		}
	}
	if l.due.empty() {
		delete(l.tries, "")
	}
}

// forgets what was wrong with interfaces that are not there any more, or that no policy names, or
// another one than did.
func (a *agent) forgets(now due, files enabled.Files, links []link.Link) {
	l := &a.lasting
	owners := map[string]string{}
	for _, x := range links {
		owners[x.Name] = files.Owner(x.Identity(l.uplinks))
	}
	for what, file := range l.of {
		if strings.Contains(what, "/") || !now.all && !now.names[what] || owners[what] == file { // a file, or as it was
			continue
		}
		if t := l.again[what]; t != nil {
			t.Stop()
		}
		delete(l.said, what)
		delete(l.of, what)
		delete(l.tries, what)
		delete(l.again, what)
		delete(l.waits, what)
	}
}

// wanted are the enabled policies, and the interfaces that are due and there.
func (a *agent) wanted(ctx context.Context, now due) (enabled.Files, []link.Link, error) {
	l := &a.lasting
	files, err := l.dir.Files()
	if err != nil {
		return nil, nil, fmt.Errorf("the enabled policies cannot be read: %w", err)
	}
	if l.byRoute = files.ByRoute(); l.byRoute {
		if err := a.watchRoutes(ctx); err != nil { // before they are read
			a.log.Error("routes cannot be watched", "error", err)
		}
	}
	if l.uplinks, err = a.m.Uplinks(l.byRoute); err != nil {
		return nil, nil, fmt.Errorf("routes cannot be read: %w", err)
	}
	l.byLink = files.OfLink()
	now.add(a.otherSpeeds()...)
	links, err := a.found(now)
	if err != nil {
		return nil, nil, fmt.Errorf("interfaces cannot be listed: %w", err)
	}
	return files, links, nil
}

// watchRoutes begins to tell of changes of default routes, once a policy goes by them.
func (a *agent) watchRoutes(ctx context.Context) (err error) {
	if a.route != nil {
		return nil
	}
	if a.route, err = link.WatchDefaultRoutes(rtnl.Config{}); err == nil {
		go forward(a.ended, a.routes, a.broken, unlessMissed(ctx, a.route.Receive))
	}
	return err
}

// looksAround has default routes and the speed of links looked at in a moment, where a policy
// goes by them: what takes an interface away tells of that before the routes by it are gone.
func (a *agent) looksAround() {
	if (a.lasting.byRoute || a.lasting.byLink) && a.around == nil {
		a.around = time.After(quiet)
	}
}

// looksAtRoutes notes the interfaces that the default route goes by now, or went by before.
func (a *agent) looksAtRoutes() {
	l := &a.lasting
	uplinks, err := a.m.Uplinks(l.byRoute)
	if err != nil {
		a.log.Error("routes cannot be read", "error", err)
		return
	}
	if slices.Equal(uplinks, l.uplinks) {
		return
	}
	for _, index := range slices.Concat(l.uplinks, uplinks) {
		if names := strings.Fields(a.seen[index].traits); len(names) > 0 {
			l.due.add(names[0])
		}
	}
}

// otherSpeeds are the interfaces whose line has another speed than it had, where that matters.
// While it is down what was known last counts.
func (a *agent) otherSpeeds() (names []string) {
	if !a.lasting.byLink {
		return nil
	}
	links, err := link.List(a.m.Conn)
	if err != nil {
		a.log.Error("interfaces cannot be listed", "error", err)
		return nil
	}
	was := a.lasting.speeds
	a.lasting.speeds = make(map[int]hierarchy.Bandwidth, len(links))
	for _, l := range links {
		is := cmp.Or(l.Speed, was[l.Index])
		if a.lasting.speeds[l.Index] = is; is != was[l.Index] && l.Receives == 0 {
			names = append(names, l.Name)
		}
	}
	return names
}

// follow takes trees away that stand where the default route was: what a policy says of it
// holds where it is now. Where there is none, or nothing stands there yet, they stay.
func (a *agent) follow(ctx context.Context, file string) {
	left, err := a.m.Deserted(file, a.lasting.uplinks)
	a.clears(ctx, file, left, err, "the default route goes by another one")
}

// clears takes away the trees of a file that are left, unless which these are could not be told,
// and says why.
func (a *agent) clears(ctx context.Context, file string, left []string, err error, because string) {
	if err == nil && len(left) > 0 {
		err = a.m.Withdraw(context.WithoutCancel(ctx), left, nil)
	}
	key := file + ": " + because
	if err != nil {
		a.failed(key, file, err)
		a.allAgain()
		return
	}
	delete(a.lasting.said, key)
	for _, name := range left {
		a.log.Info("cleared", "interface", name, "policy", file, "because", because)
	}
}

// found are the interfaces that are due and there.
func (a *agent) found(now due) (links []link.Link, err error) {
	if now.all {
		return link.List(a.m.Conn)
	}
	for _, name := range slices.Sorted(maps.Keys(now.names)) {
		l, err := link.Find(a.m.Conn, name)
		switch {
		case errors.As(err, new(*link.NotFoundError)):
		case err != nil:
			return nil, err
		case l.Name == name: // else another one has that for an alternative name
			links = append(links, l)
		}
	}
	return links, nil
}

// bring applies what a policy says of some interfaces. What was begun is finished: it takes
// moments.
func (a *agent) bring(ctx context.Context, file string, o shaper.ApplyOptions) (*shaper.Changes, error) {
	o.What = "agent"
	was, err := os.Stat(file)
	if err != nil {
		return nil, errAltered
	}
	o.Agreed = func(*shaper.Changes) error { // whoever had the lock may have enabled another one
		is, err := os.Stat(file)
		if err != nil || !os.SameFile(was, is) || !is.ModTime().Equal(was.ModTime()) {
			return errAltered
		}
		return nil
	}
	return a.m.Apply(context.WithoutCancel(ctx), shaper.Read(file), o)
}

// errAltered says that a policy was changed or removed while it waited to be applied.
var errAltered = errors.New("it was changed meanwhile")

// apply brings what a policy says of an interface into force.
func (a *agent) apply(ctx context.Context, f enabled.File, on link.Link) {
	l, iface, file, says := &a.lasting, on.Name, f.Path, spec(f, on, a.lasting.uplinks)
	if a.trial != nil || l.refuses(iface, says) {
		return
	}
	only := func(x link.Link) bool { return x.Index == on.Index }
	if t := l.again[iface]; t != nil {
		t.Stop()
		delete(l.again, iface)
	}
	delete(l.waits, iface)
	var c *shaper.Changes
	err := a.unheard(ctx, f, only)
	if err == nil {
		c, err = a.bring(ctx, file, a.options(only))
	}
	if err == nil && len(c.Unknown) > 0 { // it was said
		c.Close()
		a.tryAgain(iface)
		return
	}
	switch {
	case err == nil:
		defer c.Close()
		delete(l.said, iface)
		delete(l.tries, iface)
		if u := a.waiting(iface); u != nil && a.cfg.Contact != "" {
			a.begins(ctx, &trial{iface, file, says, u})
		}
		a.dirty[iface] = true // who wrote its record is not told of that
		for _, x := range c.Targets {
			if !x.Plan.Empty() {
				created, changed, deleted := x.Plan.Counts()
				a.log.Info("applied", "interface", iface, "policy", file, "created", created, "changed", changed, "deleted", deleted)
			}
		}
		return
	case errors.Is(err, errAltered):
		a.allAgain()
		return
	case errors.Is(err, rtnl.ErrGone), errors.As(err, new(*link.NotFoundError)), rtnl.Errno(err) == unix.ENODEV: // it comes again, or not
		return
	case errors.As(err, &shaper.UnconfirmedError{}):
		a.failed(iface, file, err)
		l.waits[iface] = true
		return
	}
	a.failed(iface, file, err)
	a.tryAgain(iface)
}

// tryAgain has an interface shaped after a time, longer each time, or what is due by then where it
// is empty.
func (a *agent) tryAgain(iface string) {
	l := &a.lasting
	tries := l.tries[iface]
	if tries == nil {
		tries = &repairs{}
		l.tries[iface] = tries
	}
	at := time.Now()
	tries.wait(at) // forgets what is long ago
	tries.done(at)
	if t := l.again[iface]; t != nil {
		t.Stop()
	}
	l.again[iface] = a.remind(tries.delay(), a.anew, iface)
}

// allAgain has all looked at after a time.
func (a *agent) allAgain() {
	a.lasting.due.all = true
	a.tryAgain("")
}

// failed logs why something is not in force, once.
func (a *agent) failed(what, file string, err error) {
	text := strings.TrimSpace(err.Error())
	if a.lasting.said[what] == text {
		return
	}
	a.lasting.said[what], a.lasting.of[what] = text, file
	a.warn(err, "policy", file)
}
