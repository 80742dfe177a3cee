package resolve

import (
	"bufio"
	"context"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/iface"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Like says of a binding to what is not there whether the machine knows that nevertheless, as
// a unit that is stopped, and else which bindings may have been meant, three at most, the
// likeliest first. What cannot be read is left out: it is for a question in a message. It
// reads directories, and takes no privileges but for containers.
func Like(ctx context.Context, cfg Config, x bind.Binding) (known bool, near []bind.Binding) {
	if cfg.Watch == nil {
		cfg.Watch = func(string, func(string) bool) {}
	}
	l := &look{Config: cfg, ctx: ctx}
	var names []string
	switch x.Kind {
	case bind.Unit, bind.Slice:
		known, names = l.likeUnit(x)
	case bind.User:
		names = hierarchy.Near(x.Name, l.users())
	case bind.Link:
		if all, err := iface.List(l.NetNSFD); err == nil {
			for _, i := range all {
				names = append(names, i.Name)
			}
		}
		names = hierarchy.Near(x.Name, names)
	case bind.Container:
		known, names = (&containers{look: l}).like(x.Name)
	case bind.Cgroup:
		if bind.Pattern(x.Name).Exact() {
			names = l.likeCgroup(x.Name)
		}
	}
	for _, n := range names {
		near = append(near, bind.Binding{Kind: x.Kind, Name: n})
	}
	return known, near
}

// unitDirs are where the system's manager looks for unit files, and what generators and
// packages leave there (systemd.unit(5), systemd 252).
var unitDirs = []string{
	"etc/systemd/system.control", "run/systemd/system.control", "run/systemd/transient", "run/systemd/generator.early",
	"etc/systemd/system", "etc/systemd/system.attached", "run/systemd/system", "run/systemd/system.attached", "run/systemd/generator",
	"usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system", "run/systemd/generator.late",
}

// likeUnit looks for a unit or slice among unit files and among what runs.
func (l *look) likeUnit(x bind.Binding) (known bool, near []string) {
	if !l.Tree.V2() || !bind.Pattern(x.Name).Exact() { // there are no units, or it is one of many
		return true, nil
	}
	there := map[string]bool{}
	for _, dir := range unitDirs {
		ents, _ := os.ReadDir(filepath.Join(l.Root, dir))
		for _, e := range ents {
			if n := e.Name(); !e.IsDir() && strings.Contains(n, ".") {
				there[n] = true
			}
		}
	}
	running, _ := l.units([]Branch{{Bind: []bind.Binding{{Kind: x.Kind, Name: "*"}}}})
	for n := range running {
		there[n] = true
	}
	stem, ext := cutUnit(x.Name)
	template, instance, instantiated := strings.Cut(stem, "@")
	switch {
	case instantiated && instance == "":
		return false, []string{template + "@*" + ext} // nothing runs as the template itself
	case there[x.Name], instantiated && there[template+"@"+ext]:
		return true, nil
	}
	var stems, all []string
	for n := range there {
		s, e := cutUnit(n)
		if strings.HasSuffix(s, "@") {
			if !instantiated {
				continue
			}
			s += instance
		}
		if e == ext {
			stems = append(stems, s)
		} else if (e == ".slice") == (x.Kind == bind.Slice) {
			all = append(all, s+e)
		}
	}
	slices.Sort(stems) // of those that are as like it the first by name
	slices.Sort(all)
	if len(stems) == 0 { // there is no such kind of unit
		return false, hierarchy.Near(x.Name, all)
	}
	for _, s := range hierarchy.Near(stem, stems) {
		near = append(near, s+ext)
	}
	return false, near
}

// cutUnit parts the name of a unit from its ending.
func cutUnit(name string) (stem, ext string) {
	ext = path.Ext(name)
	return strings.TrimSuffix(name, ext), ext
}

// users are the names of users of the machine itself, not those of a directory service.
func (l *look) users() (names []string) {
	f, err := os.Open(filepath.Join(l.Root, "etc/passwd"))
	if err != nil {
		return nil
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, _, ok := strings.Cut(s.Text(), ":"); ok && name != "" && name[0] != '#' {
			names = append(names, name)
		}
	}
	return names
}

// likeCgroup are paths like one, by the first of its parts that is not there.
func (l *look) likeCgroup(name string) (near []string) {
	at, rest := "", strings.TrimPrefix(name, "/")
	for rest != "" {
		part, below, more := strings.Cut(rest, "/")
		if _, _, err := l.Tree.ID(at + "/" + part); err == nil {
			at, rest = at+"/"+part, below
			continue
		}
		names, _ := l.Tree.Children(at)
		slices.Sort(names)
		for _, n := range hierarchy.Near(part, names) {
			p := at + "/" + n
			if p == home.Root { // nothing there is for others to bind
				continue
			}
			if _, _, err := l.Tree.ID(p + "/" + below); more && err == nil {
				p += "/" + below
			}
			near = append(near, p)
		}
		break
	}
	return near
}

// like looks for a container by its name.
func (c *containers) like(name string) (known bool, near []string) {
	if err := c.find(); err != nil {
		return true, nil
	}
	if id, reason := c.id(name); id != "" || strings.HasPrefix(reason, "several") || len(c.unread) > 0 {
		return true, nil
	}
	var names []string
	for n, all := range c.names {
		if slices.ContainsFunc(all, func(x named) bool { return len(c.cgroups[x.id]) > 0 }) {
			names = append(names, n)
		}
	}
	dir := filepath.Join(c.Root, "var/lib/nerdctl")
	for _, address := range c.entries(dir) {
		for _, space := range c.entries(filepath.Join(dir, address, "names")) {
			names = append(names, c.entries(filepath.Join(dir, address, "names", space))...)
		}
	}
	slices.Sort(names)
	return false, hierarchy.Near(name, names)
}
