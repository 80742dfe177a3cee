package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/enabled"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// lasting are the enabled policies, and what has to be done about them.
type lasting struct {
	dir   enabled.Dir
	due   due
	tries map[string]*repairs    // by interface, of those that could not be shaped
	again map[string]*time.Timer // until they are due again
	waits map[string]bool        // interfaces that wait until an apply is confirmed
	said  map[string]string      // by file or interface, its last error
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
	if l.due.empty() {
		return
	}
	now := l.due
	l.due = due{}
	files, err := l.dir.Files()
	if err != nil {
		a.log.Error("the enabled policies cannot be read", "error", err)
		return
	}
	links, err := a.found(now)
	if err != nil {
		a.log.Error("interfaces cannot be listed", "error", err)
		return
	}
	for _, f := range files {
		if f.Err != nil {
			a.failed(f.Path, f.Path, f.Err)
			continue
		}
		delete(l.said, f.Path)
		if now.all { // says what waits, and what the policy may not mean
			if c, err := a.bring(ctx, f.Path, func(link.Link) bool { return false }); err != nil {
				a.failed(f.Path, f.Path, err)
			} else {
				c.Close()
			}
		}
		for _, x := range links {
			if x.Receives == 0 && files.Owner(x.Identity()) == f.Path {
				a.apply(ctx, f.Path, x)
			}
		}
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
func (a *agent) bring(ctx context.Context, file string, only func(link.Link) bool) (*shaper.Changes, error) {
	return a.m.Apply(context.WithoutCancel(ctx), shaper.Read(file), shaper.ApplyOptions{What: "agent", Scope: shaper.Scope{Only: only, Waits: true}})
}

// apply brings what a policy says of an interface into force.
func (a *agent) apply(ctx context.Context, file string, on link.Link) {
	l, iface := &a.lasting, on.Name
	if t := l.again[iface]; t != nil {
		t.Stop()
		delete(l.again, iface)
	}
	delete(l.waits, iface)
	c, err := a.bring(ctx, file, func(x link.Link) bool { return x.Index == on.Index })
	switch {
	case err == nil:
		defer c.Close()
		delete(l.said, iface)
		delete(l.tries, iface)
		a.dirty[iface] = true // who wrote its record is not told of that
		for _, x := range c.Targets {
			if !x.Plan.Empty() {
				created, changed, deleted := x.Plan.Counts()
				a.log.Info("applied", "interface", iface, "policy", file, "created", created, "changed", changed, "deleted", deleted)
			}
		}
		return
	case errors.Is(err, rtnl.ErrGone), errors.As(err, new(*link.NotFoundError)), rtnl.Errno(err) == unix.ENODEV: // it comes again, or not
		return
	case errors.As(err, &shaper.UnconfirmedError{}):
		a.failed(iface, file, err)
		l.waits[iface] = true
		return
	}
	a.failed(iface, file, err)
	tries := l.tries[iface]
	if tries == nil {
		tries = &repairs{}
		l.tries[iface] = tries
	}
	at := time.Now()
	tries.wait(at) // forgets what is long ago
	tries.done(at)
	l.again[iface] = a.remind(tries.delay(), a.anew, iface)
}

// failed logs why something is not in force, once.
func (a *agent) failed(what, file string, err error) {
	text := strings.TrimSpace(err.Error())
	if a.lasting.said[what] == text {
		return
	}
	a.lasting.said[what] = text
	a.warn(err, "policy", file)
}
