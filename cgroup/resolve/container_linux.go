package resolve

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// containers is what one Resolve knows of those that run: what it has looked at once
// it does not look at again.
type containers struct {
	*look
	cgroups map[string][]string // by id; nil until they were looked for
	names   map[string][]named  // nil until they were read
	unread  []error             // states of runtimes that could not be read
}

// named is a container that has a name.
type named struct{ runtime, id string }

// target is the cgroup of a container, or why there is none at present.
func (c *containers) target(name string) (target bind.Target, missing string, err error) {
	if err := c.find(); err != nil {
		return target, "", err
	}
	id, reason := c.id(name)
	switch found := c.cgroups[id]; {
	case reason != "":
		return target, reason, nil
	case len(found) == 0:
		return target, "the container is not running" + c.where(), nil
	case len(found) > 1:
		return target, fmt.Sprintf("%d cgroups bear its id; write one of them: cgroup:%s", len(found), strings.Join(found, ", cgroup:")), nil
	default:
		return bind.ToCgroup(found[0]), "", nil
	}
}

// Container is one that runs.
type Container struct {
	Name   string // by which a binding names it: the beginning of its id where no name does
	Cgroup string // its path
}

// Containers are those that run, by their names, with a tree and a directory of the runtimes' state
// as [Config] has them. Unread are states that could not be read, for which some may be named
// by their ids: those of docker and podman take root.
func Containers(ctx context.Context, tree *cgroupfs.Tree, root string) (all []Container, unread, err error) {
	c := &containers{look: &look{Config: Config{Tree: tree, Root: root, Watch: func(string, func(string) bool) {}}, ctx: ctx}}
	if err := c.find(); err != nil {
		return nil, nil, err
	}
	c.readNames()
	names := map[string]string{}
	for _, name := range c.allNames() {
		if id, reason := c.id(name); reason == "" && names[id] == "" && containerName(name) {
			names[id] = name
		}
	}
	for id, at := range c.cgroups {
		all = append(all, Container{cmp.Or(names[id], id[:idStart]), at[0]})
	}
	slices.SortFunc(all, func(a, b Container) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Cgroup, b.Cgroup)) })
	return all, errors.Join(c.unread...), nil
}

// containerName says whether a binding can name a container so.
func containerName(name string) bool {
	_, err := bind.Parse(bind.Binding{Kind: bind.Container, Name: name}.String())
	return err == nil
}

// allNames are the names that the runtimes know, in order.
func (c *containers) allNames() []string {
	known := slices.Collect(maps.Keys(c.names))
	dir := filepath.Join(c.Root, "var/lib/nerdctl")
	for _, address := range c.entries(dir) {
		names := filepath.Join(dir, address, "names")
		for _, space := range c.entries(names) {
			known = append(known, c.entries(filepath.Join(names, space))...)
		}
	}
	slices.Sort(known)
	return slices.Compact(known)
}

// InContainer says whether a cgroup is a container's or below one.
func InContainer(p string) bool {
	return slices.ContainsFunc(strings.Split(p, "/"), func(part string) bool {
		_, is := containerID(part)
		return is
	})
}

// where says more of a container that was not found by its cgroup.
func (c *containers) where() string {
	if !c.Tree.V2() {
		return ", or has no cgroup in the net_cls hierarchy"
	}
	return ""
}

const (
	idLength = 64 // hexadecimal digits
	idStart  = 12 // how many of them stand for the id, as the runtimes print it
)

func hexadecimal(s string) bool { return s != "" && strings.Trim(s, "0123456789abcdef") == "" }

// id is that of the container which a binding names: as with docker, a whole id, else
// a name, else the beginning of the id of one that runs.
func (c *containers) id(name string) (id, reason string) {
	if len(name) == idLength && hexadecimal(name) {
		return name, ""
	}
	c.readNames()
	all := slices.Clone(c.names[name])
	if id, ok := c.nerdctl(name); ok {
		all = append(all, id...)
	}
	slices.SortFunc(all, func(a, b named) int { return strings.Compare(a.id+a.runtime, b.id+b.runtime) })
	all = slices.CompactFunc(all, func(a, b named) bool { return a.id == b.id })
	switch {
	case len(all) == 1:
		return all[0].id, ""
	case len(all) > 1:
		var text []string
		for _, x := range all {
			text = append(text, fmt.Sprintf("container:%s (%s)", x.id, x.runtime))
		}
		return "", "several containers bear the name; write one of them: " + strings.Join(text, ", ")
	}
	if len(name) >= idStart && len(name) < idLength && hexadecimal(name) {
		var found []string
		for id := range c.cgroups {
			if strings.HasPrefix(id, name) {
				found = append(found, id)
			}
		}
		slices.Sort(found)
		switch len(found) {
		case 0:
			return "", "no container whose id begins so is running" + c.where()
		case 1:
			return found[0], ""
		}
		return "", fmt.Sprintf("the ids of several containers begin so; write one of them: container:%s", strings.Join(found, ", container:"))
	}
	reason = fmt.Sprintf("no container of the name is known to docker (in %s), podman or nerdctl; one of Kubernetes is named by its id", c.docker())
	for _, err := range c.unread {
		reason += fmt.Sprintf("; not read: %v", err)
	}
	return "", reason
}

// find finds the cgroups of containers. It goes only where nobody but root makes
// cgroups: not below a unit or a container, who choose the names of theirs, nor where
// they were given to a user. So a rootless container is not found.
func (c *containers) find() error {
	if c.cgroups != nil {
		return nil
	}
	c.cgroups = map[string][]string{}
	t := c.Tree
	return t.Walk("/", func(p string) error {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		id, is := containerID(path.Base(p))
		switch {
		case is:
			c.cgroups[id] = append(c.cgroups[id], p)
			return fs.SkipDir
		case p != "/" && (p == home.Root || !leads(p) || !roots(t, p)):
			return fs.SkipDir
		}
		c.Watch(t.Dir(strings.TrimSuffix(p, "/")), func(name string) bool {
			_, is := containerID(name)
			return is || leads(path.Join(p, name))
		})
		return nil
	})
}

// containerID is the id in the name of a container's cgroup. With systemd it is a
// scope that begins with the runtime's name, otherwise a directory of the id alone:
// docker, podman, containerd's CRI, CRI-O, nerdctl.
func containerID(name string) (id string, ok bool) {
	id = strings.TrimSuffix(name, ".scope")
	for _, runtime := range []string{"docker-", "libpod-", "cri-containerd-", "crio-", "nerdctl-"} {
		if after, cut := strings.CutPrefix(id, runtime); cut {
			id = after
			break
		}
	}
	return id, len(id) == idLength && hexadecimal(id)
}

// leads says whether the cgroups of containers may lie below another: a slice of
// systemd's, or what is no unit. LXC's containers have no unit.
func leads(p string) bool {
	name := path.Base(p)
	if stem, slice := strings.CutSuffix(name, ".slice"); slice {
		return sliceAbove(stem) == strings.TrimPrefix(path.Base(path.Dir(p)), "/")
	}
	switch path.Ext(name) {
	case ".service", ".scope", ".socket", ".mount", ".swap":
		return false
	}
	return !strings.HasPrefix(name, "lxc")
}

// roots says whether a cgroup belongs to root.
func roots(t *cgroupfs.Tree, p string) bool {
	var st unix.Stat_t
	return unix.Lstat(t.Dir(p), &st) == nil && st.Uid == 0
}

// Limits for what the runtimes keep. Theirs are far below.
const (
	mostContainers = 10_000
	mostState      = 16 << 20 // bytes of a file
)

// docker is where docker keeps its state, which is often moved to a larger disk.
func (c *containers) docker() string {
	var x struct {
		DataRoot string `json:"data-root"`
	}
	if !c.readJSON(filepath.Join(c.Root, "etc/docker/daemon.json"), &x) || x.DataRoot == "" {
		x.DataRoot = "var/lib/docker"
	}
	return filepath.Join(c.Root, x.DataRoot)
}

// readNames reads what docker and podman know. A container has its name before its
// cgroup, so that nobody has to wait for changes here.
func (c *containers) readNames() {
	if c.names != nil {
		return
	}
	c.names = map[string][]named{}
	add := func(runtime, name, id string) {
		if len(id) == idLength && hexadecimal(id) {
			c.names[name] = append(c.names[name], named{runtime, id})
		}
	}
	dir := filepath.Join(c.docker(), "containers")
	for _, id := range c.entries(dir) {
		var x struct{ Name string }
		if len(id) == idLength && hexadecimal(id) && c.readJSON(filepath.Join(dir, id, "config.v2.json"), &x) {
			add("docker", strings.TrimPrefix(x.Name, "/"), id)
		}
	}
	dir = filepath.Join(c.Root, "var/lib/containers/storage")
	for _, driver := range []string{"overlay", "vfs", "btrfs", "zfs"} {
		for _, file := range []string{"containers.json", "volatile-containers.json"} {
			var all []struct {
				ID    string
				Names []string
			}
			if !c.readJSON(filepath.Join(dir, driver+"-containers", file), &all) {
				continue
			}
			for _, x := range all {
				for _, name := range x.Names {
					add("podman", name, x.ID)
				}
			}
		}
	}
}

// nerdctl finds a name in every namespace of containerd's.
func (c *containers) nerdctl(name string) (all []named, ok bool) {
	dir := filepath.Join(c.Root, "var/lib/nerdctl")
	for _, address := range c.entries(dir) {
		names := filepath.Join(dir, address, "names")
		for _, space := range c.entries(names) {
			b, err := readState(filepath.Join(names, space, name), idLength+1)
			c.note(err)
			id := string(bytes.TrimSpace(b))
			if len(id) == idLength && hexadecimal(id) {
				all = append(all, named{"nerdctl, namespace " + space, id})
			}
		}
	}
	return all, len(all) > 0
}

// entries are the names in a directory, none where it is not there.
func (c *containers) entries(dir string) []string {
	f, err := os.Open(dir)
	if err != nil {
		c.note(err)
		return nil
	}
	defer f.Close()
	names, err := f.Readdirnames(mostContainers)
	if err != nil && err != io.EOF {
		c.note(err)
	}
	return names
}

// readJSON reads a file of a runtime's, and says whether there was one.
func (c *containers) readJSON(file string, to any) bool {
	b, err := readState(file, mostState)
	if err == nil {
		if err = json.Unmarshal(b, to); err != nil {
			err = fmt.Errorf("%s: %w", file, err)
		}
	}
	c.note(err)
	return err == nil
}

func (c *containers) note(err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) && len(c.unread) < 3 {
		c.unread = append(c.unread, err)
	}
}

// readState reads a file that somebody else writes: an ordinary one, of limited
// length, and no link to another.
func readState(file string, most int64) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > most {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", file, most)
	}
	return io.ReadAll(io.LimitReader(f, most))
}
