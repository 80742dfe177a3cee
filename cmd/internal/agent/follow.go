package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/enabled"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/link"
)

const (
	// settled is how long nothing may have changed in the directory of policies before it is
	// read: several files, or a file and its backup, are written one after the other.
	settled = 200 * time.Millisecond
	// tryContact is how long one try to reach the contact may take, and the time between two.
	tryContact = time.Second
)

// trial is an apply that stays if the contact can be reached.
type trial struct {
	iface, file string
	said        string // what the policy says of the interface, as refused has it
	waits       *record.Unconfirmed
}

// followDir watches the directory of policies, those in it with what is laid over them, and the
// one above for its being made.
func (a *agent) followDir() (err error) {
	if !a.cfg.Follow {
		return nil
	}
	dir := a.lasting.dir.Path
	if a.aboveDir, err = a.dirs.add(filepath.Dir(dir), unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		return err
	}
	const changes = unix.IN_CREATE | unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_ATTRIB | unix.IN_ONLYDIR
	if a.policiesDir, err = a.dirs.add(dir, changes); err != nil {
		return record.UnlessGone(err)
	}
	over, err := os.ReadDir(dir)
	if err != nil {
		return record.UnlessGone(err)
	}
	was := a.overDirs
	a.overDirs = map[int]string{}
	for _, e := range over {
		if !strings.HasSuffix(e.Name(), ".toml"+policy.OverSuffix) {
			continue
		}
		at := filepath.Join(dir, e.Name())
		wd, err := a.dirs.add(at, changes)
		switch {
		case err == nil:
			a.overDirs[wd] = at
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
			return err
		}
	}
	for wd := range was {
		if !a.needs(wd) {
			a.dirs.remove(wd)
		}
	}
	return nil
}

// policiesNoticed takes in a change in the directory of policies. A file that was just made has
// nothing in it yet, but a link leads somewhere: kubelet puts one in the place of another.
func (a *agent) policiesNoticed(n notice) {
	dir := a.lasting.dir.Path
	switch {
	case n.wd == a.aboveDir && n.name != filepath.Base(dir):
		return
	case n.wd == a.aboveDir:
		if err := a.followDir(); err != nil {
			a.warn(err)
		}
	case n.wd == a.policiesDir && strings.HasSuffix(n.name, policy.OverSuffix):
		if err := a.followDir(); err != nil {
			a.warn(err)
		}
	case n.mask&unix.IN_CREATE != 0:
		if st, err := os.Lstat(filepath.Join(cmp.Or(a.overDirs[n.wd], dir), n.name)); err != nil || st.Mode()&os.ModeSymlink == 0 {
			return
		}
	}
	a.reread = time.After(settled)
}

// withdraw clears interfaces whose tree came from a file of the directory that is not there any
// more, or does not name them any more. A file with a mistake keeps what it had.
func (a *agent) withdraw(ctx context.Context, files enabled.Files) {
	if _, err := os.Stat(a.lasting.dir.Path); !a.cfg.Follow || err != nil { // it may be mounted again
		return
	}
	is := map[string]enabled.File{}
	for _, f := range files {
		is[f.Path] = f
	}
	names, err := a.m.Store.Interfaces()
	if err != nil {
		a.warn(err)
		return
	}
	from := map[string]bool{}
	for _, name := range names {
		if r, err := a.m.Store.Load(name); err == nil && filepath.Dir(r.Policy) == a.lasting.dir.Path {
			from[r.Policy] = true
		}
	}
	for _, path := range slices.Sorted(maps.Keys(from)) {
		f, there := is[path]
		if there && f.Policy == nil {
			continue
		}
		left, err := a.m.From(path, f.Policy)
		left = slices.DeleteFunc(left, func(name string) bool { // what goes by the default route stays where there is none
			r, err := a.m.Store.Load(name)
			return there && err == nil && r.Selector == hierarchy.DefaultRoute
		})
		a.clears(ctx, path, left, err, "the policy names it no more")
	}
}

// spec is what files say of an interface, as it is compared; empty: nothing.
func spec(f enabled.File, x link.Link, uplinks []int) string {
	if f.Policy == nil {
		return ""
	}
	at, _ := f.Policy.For(x.Identity(uplinks))
	if at < 0 {
		return ""
	}
	b, _ := json.Marshal(f.Policy.Specs[at])
	return string(b)
}

// refuses says whether an interface is to stay as it is: it went back from what the policy says
// of it, and the policy says it still.
func (l *lasting) refuses(iface, says string) bool {
	was, ok := l.refused[iface]
	if ok && was != says {
		delete(l.refused, iface)
	}
	return ok && was == says
}

// unheard is the error of an interface that would be changed while the contact cannot be
// reached at any rate: that would say nothing of the change.
func (a *agent) unheard(ctx context.Context, f enabled.File, only func(link.Link) bool) error {
	if a.cfg.Contact == "" {
		return nil
	}
	c, err := a.m.Plan(ctx, shaper.Read(f.Path), shaper.Scope{Only: only, Waits: true})
	if err != nil { // which applying tells
		return nil
	}
	defer c.Close()
	if c.Empty() {
		return nil
	}
	err = a.reaches(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EAFNOSUPPORT): // by seccomp, as systemd has it
		return fmt.Errorf("%s stays as it is: %s cannot be reached from the agent (%w): its unit takes RestrictAddressFamilies=AF_INET AF_INET6 besides", f.Path, a.cfg.Contact, err)
	}
	return fmt.Errorf("%s stays as it is until %s can be reached (%w): it would not be known whether what the policy says keeps this machine from it", f.Path, a.cfg.Contact, err)
}

// reaches is an error where the contact cannot be reached just now.
func (a *agent) reaches(ctx context.Context) error {
	d := net.Dialer{Timeout: tryContact}
	c, err := d.DialContext(ctx, "tcp", a.cfg.Contact)
	if err != nil {
		return err
	}
	return c.Close()
}

// begins has the contact tried in the second half of the time in which an apply waits to be
// confirmed: who still gets there by connections of before, or until queues are full, is cut off.
func (a *agent) begins(ctx context.Context, t *trial) {
	a.trial = t
	a.log.Info("stays if the contact can be reached", "interface", t.iface, "contact", a.cfg.Contact, "until", t.waits.At.Format(time.TimeOnly))
	left := t.waits.Left()
	go func() {
		wait, ended := time.NewTimer(left/2), time.After(left)
		defer wait.Stop()
		held := false
		for done := false; !done; {
			select {
			case <-a.ended:
				return
			case <-ended:
				done = true
			case <-wait.C:
				held = a.reaches(ctx) == nil
				done = held
				wait.Reset(min(tryContact, left/10))
			}
		}
		select {
		case a.held <- held:
		case <-a.ended:
		}
	}()
}

// judge keeps what was applied, or takes note that it goes back.
func (a *agent) judge(ctx context.Context, held bool) {
	t := a.trial
	a.trial = nil
	if held {
		err := a.m.Confirm(context.WithoutCancel(ctx), t.waits.ID())
		for errors.As(err, new(*record.LockedError)) && t.waits.Left() > 0 {
			err = a.m.Confirm(context.WithoutCancel(ctx), t.waits.ID())
		}
		if err != nil && a.waiting(t.iface) != nil {
			a.goes(t, err)
			return
		}
		// Where somebody else has confirmed it that is an error, too.
		if is, failed := a.m.Store.Load(t.iface); err == nil || failed == nil && is.Serial == t.waits.Before[t.iface]+1 {
			a.log.Info("kept: the contact can be reached", "interface", t.iface, "policy", t.file)
			a.dirty[t.iface] = true
			return
		}
		// It went back while it was tried, and that is why it can be reached.
	}
	a.goes(t, fmt.Errorf("%s goes back to what it was: %s could not be reached with what %s says", t.iface, a.cfg.Contact, t.file))
}

// goes notes that an interface is not what the policy says, and is not to become it before that
// says something else.
func (a *agent) goes(t *trial, err error) {
	a.lasting.refused[t.iface] = t.said
	a.failed(t.iface, t.file, err)
}

// waiting is the apply of an interface that waits to be confirmed; nil: none does.
func (a *agent) waiting(iface string) *record.Unconfirmed {
	u, err := a.m.Store.Unconfirmed()
	if err != nil || u == nil {
		return nil
	}
	if _, ok := u.Before[iface]; !ok {
		return nil
	}
	return u
}

// options are those of an apply of the agent.
func (a *agent) options(only func(link.Link) bool) shaper.ApplyOptions {
	o := shaper.ApplyOptions{Scope: shaper.Scope{Only: only, Waits: true}}
	if a.cfg.Contact != "" {
		o.Confirm, o.Watch = a.cfg.Confirm, a.cfg.Guard
	}
	return o
}

// tells saves what became of each policy, for those who ask.
func (a *agent) tells(ctx context.Context, files enabled.Files) {
	if a.cfg.Policies == "" {
		return
	}
	why := map[string]string{}
	l := &a.lasting
	for _, what := range slices.Sorted(maps.Keys(l.said)) {
		why[l.of[what]] = l.said[what]
	}
	if t := a.trial; t != nil {
		why[t.file] = t.iface + " waits to be confirmed"
	}
	all := make([]record.Enabled, 0, len(files))
	for _, f := range files {
		all = append(all, record.Enabled{Policy: f.Path, Why: why[f.Path]})
	}
	if slices.Equal(all, l.told) {
		return
	}
	unlock, err := a.m.Store.Lock(ctx, "agent") // who holds it clears away what others write
	if err == nil {
		err = a.m.Store.SetEnabled(all)
		unlock()
	}
	if err != nil {
		a.warn(err)
		return
	}
	l.told = all
}
