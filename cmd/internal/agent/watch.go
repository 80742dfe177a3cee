package agent

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Notice is something that a [Watch] has to tell of an interface.
type Notice struct {
	Time      time.Time `json:"time"`
	Interface string    `json:"interface"`
	// Event is "changed" for what is not as it was applied, "as applied" where it is again,
	// "repaired" where the watch has put it back, "failed" where it could not, and "waits" where
	// somebody fights with it, so that it does not yet.
	Event string        `json:"event"`
	What  []string      `json:"what,omitempty"` // that is not as it was applied, or why it failed
	After time.Duration `json:"-"`              // of "waits": when it tries again
}

const (
	// quiet is how long the kernel must have had nothing to tell before a watch looks: who
	// changes a tree is in the midst of it until then.
	quiet = 50 * time.Millisecond
	// mostQuiet is after how long it looks where something changes again and again.
	mostQuiet = time.Second
	// sure is how long something must be otherwise to be told of: while vifshape applies,
	// the record is ahead of the kernel, and who has no privileges cannot wait for its lock.
	sure = 200 * time.Millisecond
)

// watch is what was found of one interface.
type watch struct {
	what    []string // that is not as it was applied, as was told
	seen    []string // what was seen last, and not told yet
	repairs repairs
	due     time.Time // when it is to be repaired; zero: it is not
}

// Watch tells of what becomes different on the interfaces that are shaped, those of names or,
// without, all of them, from what was applied: what others change, until ctx ends, which is no
// error. What is different at the beginning comes first. With repair it is put back, later each
// time, which takes root; looking takes no privileges.
func Watch(ctx context.Context, m *shaper.Machine, names []string, repair bool, tell func(Notice) error) error {
	if repair { // without the rights to it this is the time to say so
		if err := m.MayWrite(ctx); err != nil {
			return err
		}
	}
	links, err := link.Watch(rtnl.Config{})
	if err != nil {
		return err
	}
	defer links.Close()
	queues, err := tc.WatchChanges(rtnl.Config{}, m.Conn)
	if err != nil {
		return err
	}
	defer queues.Close()
	ended := make(chan struct{})
	defer close(ended)
	events, changes, failed := make(chan []link.Event), make(chan []tc.Change), make(chan error, 2)
	go forward(ended, events, failed, unlessMissed(ctx, links.Receive))
	go forward(ended, changes, failed, unlessMissed(ctx, queues.Receive))

	all := map[string]*watch{}
	look := time.After(0)
	var since time.Time // what has changed is not looked at
	changed := func() {
		if since.IsZero() {
			since = time.Now()
		}
		look = time.After(min(quiet, time.Until(since.Add(mostQuiet))))
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return err
		case <-events:
			changed()
		case <-changes:
			changed()
		case <-look:
			since = time.Time{}
			next, err := lookAt(ctx, m, names, all, repair, tell)
			if err != nil {
				return err
			}
			look = nil
			if next > 0 {
				look = time.After(next)
			}
		}
	}
}

// lookAt tells what is new of interfaces, and says when to look again; 0: when something
// happens.
func lookAt(ctx context.Context, m *shaper.Machine, names []string, all map[string]*watch, repair bool, tell func(Notice) error) (next time.Duration, err error) {
	there, err := m.Store.Interfaces()
	if err != nil {
		return 0, err
	}
	for name := range all {
		if !slices.Contains(there, name) { // it is cleared
			delete(all, name)
		}
	}
	for _, name := range there {
		if len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		w := all[name]
		if w == nil {
			w = &watch{}
			all[name] = w
		}
		wait, err := w.look(ctx, m, name, repair, tell)
		if err != nil {
			return 0, err
		}
		if wait > 0 {
			next = min(cmp.Or(next, wait), wait)
		}
	}
	return next, nil
}

func (w *watch) look(ctx context.Context, m *shaper.Machine, name string, repair bool, tell func(Notice) error) (next time.Duration, err error) {
	say := func(event string, what []string, after time.Duration) error {
		return tell(Notice{Time: time.Now(), Interface: name, Event: event, What: what, After: after})
	}
	var lost *shaper.LostError
	switch err := m.Intact(ctx, name); {
	case ctx.Err() != nil:
		return 0, nil
	case errors.As(err, &lost):
	case errors.As(err, new(*link.NotFoundError)):
		lost = &shaper.LostError{What: []string{"the interface is gone"}}
		repair = false
	case err != nil:
		lost = &shaper.LostError{What: []string{strings.TrimPrefix(err.Error(), name+": ")}}
		repair = false
	}
	if lost == nil {
		w.seen = nil
		if len(w.what) > 0 {
			w.what = nil
			return 0, say("as applied", nil, 0)
		}
		return 0, nil
	}
	if !slices.Equal(lost.What, w.what) {
		if !slices.Equal(lost.What, w.seen) {
			w.seen = lost.What
			return sure, nil
		}
		w.what, w.seen = lost.What, nil
		if err := say("changed", w.what, 0); err != nil {
			return 0, err
		}
	}
	if !repair {
		return 0, nil
	}
	if wait := w.repairs.wait(time.Now()); wait > 0 {
		if due := time.Now().Add(wait); due.Sub(w.due).Abs() > time.Second {
			w.due = due
			return wait, say("waits", nil, wait)
		}
		return wait, nil
	}
	w.repairs.done(time.Now())
	done, err := m.Repair(ctx, name)
	if shaper.NotPrivileged(err) {
		return 0, err
	}
	if err != nil { // as of a foreign root qdisc, or of one that is in the midst of it
		return w.repairs.delay(), say("failed", []string{strings.TrimPrefix(err.Error(), name+": ")}, 0)
	}
	w.what = nil
	if !done {
		return 0, nil // somebody else has
	}
	return 0, say("repaired", nil, 0)
}
