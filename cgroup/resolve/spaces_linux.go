package resolve

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/iface"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Limits for what can be made below a bound cgroup by who is in it: cgroups, the
// processes of one, and the network namespaces of those.
const (
	mostCgroups    = 4096
	mostProcesses  = 8192
	mostNamespaces = 16
)

// spaces is what one Resolve finds of the network namespaces of bound processes.
type spaces struct {
	*look
	*resolver
	home    uint64 // the interface's own
	proc    *os.File
	ports   []iface.Link
	ask     *iface.Conn
	members map[int]*member
	by      map[uint64][]*member // by namespace, but those in home
	of      map[*claim][]*member // by what they are bound by
	first   []int                // of each cgroup whose first process is in home
	held    map[uint64]*Branch   // whose the interfaces of a namespace are
	led     map[string]bool      // interfaces that lead to a namespace
}

// member is a process of a network namespace.
type member struct {
	pid int
	dir string // its cgroup
	by  *claim // what that is bound by, nil: nothing
	ns  uint64 // 0: it has ended, or it cannot be told
}

// reach binds, for the cgroups that are bound, the interfaces whose other ends are in
// the network namespaces of their processes: what these send is forwarded here, and
// has no socket any more. Of processes for which there is none it tells.
//
// One interface carries what all in a namespace send. It is of the branch that the
// oldest process there is bound to, as the first of a pod is: who enters a namespace
// later does not take its interface along. Where the oldest is bound to nothing, the
// oldest container counts that is bound and began there: of a pod one may be named. Who
// is older than all in a namespace and enters it needs the rights to it, as root has.
//
// A container that may make network namespaces (with user namespaces anybody may) can
// hide its own: all its processes leave it, and its sockets stay. Who cannot trust it
// so far binds its interface by name.
//
// It returns the names of the interfaces that lead to where these processes are, whosever they
// are.
func (l *look) reach(r *resolver) (led map[string]bool, err error) {
	s := &spaces{look: l, resolver: r, members: map[int]*member{}, by: map[uint64][]*member{}, of: map[*claim][]*member{}, held: map[uint64]*Branch{}, led: map[string]bool{}}
	return s.led, s.reach()
}

func (s *spaces) reach() (err error) {
	if s.proc, err = os.Open("/proc"); err != nil {
		return err
	}
	defer s.proc.Close()
	if s.home, err = iface.NetNS(s.NetNSFD); err != nil {
		return err
	}
	if err = s.walk(); err != nil || len(s.members) == 0 {
		return err
	}
	if err = s.locate(); err != nil {
		return err
	}
	if s.NoLinks == nil {
		if s.ports, err = iface.Ports(s.NetNSFD); err != nil {
			return err
		}
		if len(s.ports) > 0 {
			s.lookAgain()
		}
		if !s.only { // else only that counts where a pod has begun
			if err = s.visitors(); err != nil {
				return err
			}
		}
		if s.ask, err = iface.Dial(s.NetNSFD); err != nil {
			return err
		}
		defer s.ask.Close()
	}
	spaces := slices.SortedFunc(maps.Keys(s.by), func(x, y uint64) int { return cmp.Compare(s.by[x][0].pid, s.by[y][0].pid) })
	var others []uint64
	for _, ns := range spaces {
		leads, err := s.space(ns)
		if err != nil {
			return err
		}
		if !leads {
			others = append(others, ns)
		}
	}
	for _, ns := range others {
		if err = s.other(ns); err != nil {
			return err
		}
	}
	return nil
}

// tell notes why processes are not held.
func (s *spaces) tell(by *claim, reason string, pids ...int) {
	i := slices.IndexFunc(s.Outside, func(o Outside) bool {
		return o.Path == by.branch.Path && o.Binding == by.binding && o.Reason == reason
	})
	if i < 0 {
		s.Outside = append(s.Outside, Outside{by.branch.Path, by.binding, pids, reason})
		return
	}
	s.Outside[i].PIDs = append(s.Outside[i].PIDs, pids...)
}

// walk finds the processes of all that is bound. What lies deep comes last, so that
// who makes many cgroups below its own is the one who is left out.
func (s *spaces) walk() error {
	type place struct {
		dir string
		by  *claim
	}
	t := s.Tree
	var queue []place
	for _, target := range s.order {
		by := s.won[target]
		if target.Kind != bind.TargetCgroup || by == nil {
			continue
		}
		if s.only && by.pod != nil || !s.only && s.above(target.Name) == nil {
			queue = append(queue, place{target.Name, by})
		}
	}
	if len(queue) > 0 && s.NoLinks == nil {
		s.Watch("", func(string) bool { return true })
	}
	for i := 0; i < len(queue); i++ {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		at := queue[i]
		if i == mostCgroups {
			for _, x := range queue[i:] {
				s.tell(x.by, fmt.Sprintf("there are more than %d bound cgroups, and the processes of the others are not looked for in other network namespaces", mostCgroups))
			}
			break
		}
		if s.NoLinks == nil {
			s.Watch(t.Dir(at.dir), func(string) bool { return true })
			s.Watch(t.Dir(at.dir+"/cgroup.events"), nil)
		}
		pids, err := t.Processes(at.dir)
		if err != nil {
			return err
		}
		if len(pids) > mostProcesses {
			s.tell(at.by, fmt.Sprintf("of %d processes in %q only %d are looked for in other network namespaces", len(pids), at.dir, mostProcesses))
			pids = pids[:mostProcesses]
		}
		for _, pid := range pids {
			s.members[pid] = &member{pid: pid, dir: at.dir, by: at.by}
		}
		children, err := below(t, at.dir)
		if err != nil {
			return err
		}
		for _, name := range children {
			next := place{at.dir + "/" + name, at.by}
			if by := s.won[bind.ToCgroup(next.dir)]; by != nil {
				next.by = by
			}
			queue = append(queue, next)
		}
	}
	return nil
}

// above is what binds a cgroup above another, nil for nothing.
func (s *spaces) above(dir string) *claim {
	for dir = path.Dir(dir); dir != "/"; dir = path.Dir(dir) {
		if by := s.won[bind.ToCgroup(dir)]; by != nil {
			return by
		}
	}
	return nil
}

// below is children, for the many that have none: a directory has as many links as
// there are others in it, and two (kernfs_refresh_inode, fs/kernfs/inode.c, v6.12).
func below(t *cgroupfs.Tree, dir string) ([]string, error) {
	var st unix.Stat_t
	if unix.Stat(t.Dir(dir+"/"), &st) == nil && st.Nlink == 2 {
		return nil, nil
	}
	return t.Children(dir)
}

// locate finds out in which network namespaces the processes are.
func (s *spaces) locate() error {
	unseen := map[*claim]int{}
	var refused error
	firsts := map[string]*member{}
	for _, pid := range slices.Sorted(maps.Keys(s.members)) {
		m := s.members[pid]
		var err error
		if m.ns, err = s.netNSOf(pid); err != nil {
			unseen[m.by]++
			refused = err
			continue
		}
		if m.ns == 0 {
			continue
		}
		s.of[m.by] = append(s.of[m.by], m)
		if firsts[m.dir] == nil {
			firsts[m.dir] = m
		}
		if m.ns != s.home {
			s.by[m.ns] = append(s.by[m.ns], m)
		}
	}
	for by, n := range unseen {
		s.tell(by, fmt.Sprintf("of %d of its processes it cannot be told in which network namespace they are: %v", n, caps.Explain(refused, unix.CAP_SYS_PTRACE)))
	}
	for _, m := range firsts {
		if m.ns == s.home {
			s.first = append(s.first, m.pid)
		}
	}
	return s.few()
}

// few leaves out the namespaces of a cgroup that has too many.
func (s *spaces) few() error {
	of := map[string]int{}
	for _, ns := range slices.Sorted(maps.Keys(s.by)) {
		seen := map[string]bool{}
		for _, m := range s.by[ns] {
			seen[m.dir] = true
		}
		for dir := range seen {
			of[dir]++
		}
		s.by[ns] = slices.DeleteFunc(s.by[ns], func(m *member) bool {
			if of[m.dir] <= mostNamespaces {
				return false
			}
			s.tell(m.by, fmt.Sprintf("there are processes of more than %d others in %q, and packets from the others go to the rest", mostNamespaces, m.dir), m.pid)
			return true
		})
		if len(s.by[ns]) == 0 {
			delete(s.by, ns)
		}
	}
	return nil
}

// netNSOf is the network namespace of a process, 0 where it has ended.
func (s *spaces) netNSOf(pid int) (inode uint64, err error) {
	var buf [64]byte
	n, err := unix.Readlinkat(int(s.proc.Fd()), strconv.Itoa(pid)+"/ns/net", buf[:])
	if err == unix.ENOENT || err == unix.ESRCH {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	text, ok := strings.CutPrefix(string(buf[:n]), "net:[")
	if !ok || !strings.HasSuffix(text, "]") {
		return 0, fmt.Errorf("network namespace of process %d: %q", pid, buf[:n])
	}
	return strconv.ParseUint(text[:len(text)-1], 10, 64)
}

// visitors adds to the namespaces the processes in them that are not bound.
func (s *spaces) visitors() error {
	if len(s.by) == 0 || len(s.ports) == 0 {
		return nil
	}
	names, err := s.proc.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || s.members[pid] != nil {
			continue
		}
		// One that is not ours to look at may be older than those in a namespace. It is
		// no way to keep the interface from them.
		if ns, err := s.netNSOf(pid); err == nil && s.by[ns] != nil {
			s.by[ns] = append(s.by[ns], &member{pid: pid, ns: ns})
		}
	}
	return nil
}

// space binds the interfaces that lead to a network namespace, and says whether there
// are any.
func (s *spaces) space(ns uint64) (leads bool, err error) {
	if s.NoLinks != nil {
		s.all(ns, nil, fmt.Sprintf("packets from there go to the rest: %v", s.NoLinks))
		return true, nil
	}
	f, err := s.open(ns)
	if f == nil || err != nil {
		return true, err // they have ended
	}
	defer f.Close()
	number, err := s.ask.Number(f)
	if err != nil {
		return true, err
	}
	var links []Link
	var names []string
	for _, p := range s.ports {
		if number < 0 || p.PeerNS != number {
			continue
		}
		links = append(links, Link{p.Index, p.Name}) // another interface that is shaped is noted, too
		if p.Name != s.Interface {
			names = append(names, p.Name)
			s.led[p.Name] = true
		}
	}
	if len(names) == 0 {
		return false, nil
	}
	owner, reason := s.owner(ns)
	by := "packets from there come by " + strings.Join(names, " and ") + " and "
	if owner == nil {
		s.all(ns, nil, by+reason)
		return true, nil
	}
	s.all(ns, owner.by.branch, fmt.Sprintf("%sgo to %s: process %d of that was there before", by, owner.by.branch.Path, owner.pid))
	if pod := owner.by.pod; pod != nil {
		if s.begins(owner.by, ns) {
			slices.SortFunc(links, func(a, b Link) int { return cmp.Compare(a.Index, b.Index) })
			s.Links[pod.ID] = links
		} else if s.only {
			return true, nil // it is in another's, of whom nothing is known here
		}
	}
	for _, name := range names {
		if target := bind.ToLink(name); s.claims[target] == nil { // else it is named for itself
			s.bind(target, owner.by)
			s.held[ns] = owner.by.branch
		}
	}
	return true, nil
}

// all tells of a namespace's processes that are not the branch's.
func (s *spaces) all(ns uint64, but *Branch, reason string) {
	for _, m := range s.by[ns] {
		if m.by != nil && m.by.branch != but {
			s.tell(m.by, reason, m.pid)
		}
	}
}

// open holds a namespace, nil where its processes have gone. The number of one may
// have become that of a process elsewhere.
func (s *spaces) open(ns uint64) (*os.File, error) {
	for _, m := range s.by[ns] {
		if m.by == nil {
			continue
		}
		f, err := os.Open("/proc/" + strconv.Itoa(m.pid) + "/ns/net")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &st)
		var now []int
		if err == nil && st.Ino == ns {
			now, err = s.Tree.Processes(m.dir)
		}
		if err == nil && slices.Contains(now, m.pid) {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// owner is whose a namespace's interface is, nil for nobody's, and why.
func (s *spaces) owner(ns uint64) (*member, string) {
	all := s.by[ns]
	if !slices.ContainsFunc(all, func(m *member) bool { return m.by == nil || m.by.branch != all[0].by.branch }) {
		return all[0], ""
	}
	first := oldest(all)
	if first.by != nil {
		return first, ""
	}
	began := slices.DeleteFunc(slices.Clone(all), func(m *member) bool { return m.by == nil || !s.began(m.by, ns) })
	if len(began) == 0 {
		return nil, fmt.Sprintf("go to the rest: process %d was there before, and is bound to nothing; link: binds an interface by its name", first.pid)
	}
	return oldest(began), ""
}

// oldest is the one that was started first.
func oldest(all []*member) *member {
	var (
		first *member
		began time.Duration
	)
	for _, m := range all {
		start, err := cgroupfs.Started(m.pid)
		if err == nil && (first == nil || start < began || start == began && m.pid < first.pid) {
			first, began = m, start
		}
	}
	return cmp.Or(first, all[0])
}

// began says whether a claim is that of a container whose first process is in a
// namespace.
func (s *spaces) began(by *claim, ns uint64) bool {
	_, is := containerID(path.Base(by.target.Name))
	return is && s.begins(by, ns)
}

// begins says whether the first process of a claim is in a namespace.
func (s *spaces) begins(by *claim, ns uint64) bool {
	all := s.of[by]
	if !slices.ContainsFunc(all, func(m *member) bool { return m.ns != ns }) {
		return len(all) > 0
	}
	return oldest(all).ns == ns
}

// other tells what becomes of what is sent from a namespace to which no interface here
// leads. That is nothing where it has no interface that is up, or where packets leave by
// others with their sockets, as by macvlan; or they come by another namespace.
func (s *spaces) other(ns uint64) error {
	f, err := s.open(ns)
	if f == nil || err != nil {
		return err
	}
	defer f.Close()
	in := int(f.Fd())
	links, err := iface.List(in)
	if err != nil {
		s.all(ns, nil, fmt.Sprintf("where packets from there go cannot be told: %v", caps.Explain(err, unix.CAP_SYS_ADMIN)))
		return nil
	}
	for _, l := range links {
		switch {
		case !l.Up || l.Local:
		case l.Kind == "tun":
			s.all(ns, nil, fmt.Sprintf("packets from there are sent on by the program behind %s, such as slirp4netns or pasta, and go where that is bound", l.Name))
			return nil
		case l.Kind == "veth" || l.Kind == "netkit":
			if s.held[ns], err = s.between(in, l); err != nil {
				return err
			}
			s.all(ns, s.held[ns], fmt.Sprintf("packets from there leave by %s, to which nothing leads here but through other namespaces or the shaped interface: they go where the interface is bound by which they come, else to the rest", l.Name))
			return nil
		}
	}
	return nil
}

// between is whose the namespace is to which an interface leads in another, nil where
// that is not known.
func (s *spaces) between(in int, l iface.Link) (*Branch, error) {
	for ns, branch := range s.held {
		f, err := s.open(ns)
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue
		}
		number, err := iface.Number(in, f)
		f.Close()
		if err != nil {
			return nil, err
		}
		if number >= 0 && number == l.PeerNS {
			return branch, nil
		}
	}
	return nil, nil
}

// lookAgain asks for another look while the first process of a cgroup is young, later
// each time: a runtime puts that into the cgroup before it enters its network
// namespace.
func (s *spaces) lookAgain() {
	const young = 30 * time.Second
	for _, pid := range s.first {
		if age, ok := age(pid); ok && age < young {
			again := 50*time.Millisecond + age/2
			if s.Again == 0 || again < s.Again {
				s.Again = again
			}
		}
	}
}

// age is how long ago a process started; ok says whether it is there.
func age(pid int) (age time.Duration, ok bool) {
	start, err := cgroupfs.Started(pid)
	var now unix.Timespec
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0, false
	}
	return max(0, time.Duration(now.Nano())-start), true
}
