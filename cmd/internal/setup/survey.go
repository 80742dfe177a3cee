//go:build linux

package setup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// ErrNoRoute says that nothing leads out of the machine.
var ErrNoRoute = errors.New("there is no default route, which says what interface leads out of this machine")

// Survey is what of a machine a policy goes by.
type Survey struct {
	Uplinks    []Uplink // in the order of the routes; never none
	LANs       []LAN
	Forwards   bool     // packets between its interfaces
	SSH        []uint16 // the ports where its servers listen
	Logins     []Found  // these servers
	Listeners  []Found  // all others
	Containers []Found
	Users      []Found // who have many processes, those with the most first
	// NoMatch and NoHost say why packets cannot be matched here, and why not by addresses
	// before translation; nil when they can, or where that cannot be told.
	NoMatch, NoHost error
	Gaps            []string // what could not be looked at, and why
}

// Uplink is an interface that default routes lead to.
type Uplink struct {
	Name       string
	What       string // as ls says it: "physical", "virtual (veth)"
	Speed      hierarchy.Bandwidth
	IPv4, IPv6 bool           // which of them
	Bridge     bool           // what it forwards between its ports no tree on it sees
	Root       hierarchy.Root // its root qdisc
}

// LAN is an interface beside those that lead out, with the networks that are behind it.
type LAN struct {
	Name     string
	Prefixes []netip.Prefix
}

// Found is something that a branch can be bound to.
type Found struct {
	Bind bind.Binding
	Text string // what was seen of it
}

// Look looks at the machine, in the network namespace of the caller, which c is in. Root is
// the directory below which container runtimes keep their state, "/" but in tests. It needs
// no privileges: what takes some is in the survey's Gaps. The error is [ErrNoRoute] where
// there is nothing to shape.
func Look(ctx context.Context, c *rtnl.Conn, root string) (*Survey, error) {
	s := &Survey{}
	links, err := link.List(c)
	if err != nil {
		return nil, err
	}
	if err := s.uplinks(c, links); err != nil {
		return nil, err
	}
	if s.LANs, err = lans(links, s.Uplinks); err != nil {
		return nil, err
	}
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		b, err := os.ReadFile("/proc/sys/net/" + f)
		s.Forwards = s.Forwards || err == nil && strings.TrimSpace(string(b)) != "0"
	}
	s.matching(links)
	return s, s.processes(ctx, root)
}

func (s *Survey) gap(format string, args ...any) {
	s.Gaps = append(s.Gaps, fmt.Sprintf(format, args...))
}

// uplinks are the interfaces of the default routes.
func (s *Survey) uplinks(c *rtnl.Conn, links []link.Link) error {
	routes, err := link.DefaultRoutes(c)
	if err != nil {
		return err
	}
	roots, err := tc.Roots(c)
	if err != nil {
		return err
	}
	for _, r := range routes {
		i := slices.IndexFunc(links, func(l link.Link) bool { return l.Index == r.Index })
		if i < 0 {
			continue // gone meanwhile
		}
		l := links[i]
		at := slices.IndexFunc(s.Uplinks, func(u Uplink) bool { return u.Name == l.Name })
		if at < 0 {
			at = len(s.Uplinks)
			s.Uplinks = append(s.Uplinks, Uplink{Name: l.Name, What: l.What(), Speed: l.Speed, Bridge: l.Nature == link.Bridge, Root: roots[l.Index]})
		}
		u := &s.Uplinks[at]
		u.IPv4, u.IPv6 = u.IPv4 || !r.IPv6, u.IPv6 || r.IPv6
	}
	if len(s.Uplinks) == 0 {
		return ErrNoRoute
	}
	return nil
}

// lans are the interfaces behind which there may be machines: not the bridges to which
// containers and virtual machines of this one are connected, and nothing else.
func lans(links []link.Link, uplinks []Uplink) (all []LAN, err error) {
	nature := map[string]link.Nature{}
	for _, l := range links {
		nature[l.Name] = l.Nature
	}
	inside := func(l link.Link) bool {
		return l.Nature == link.Bridge && !slices.ContainsFunc(l.Members, func(m string) bool {
			return slices.Contains([]link.Nature{link.Physical, link.VLAN, link.Bond}, nature[m])
		})
	}
	for _, l := range links {
		out := slices.ContainsFunc(uplinks, func(u Uplink) bool { return u.Name == l.Name })
		if out || !l.Up || l.Nature == link.Loopback || l.Receives != 0 || inside(l) {
			continue
		}
		addrs, err := (&net.Interface{Index: l.Index}).Addrs()
		if err != nil {
			return nil, fmt.Errorf("addresses of %s: %w", l.Name, err)
		}
		x := LAN{Name: l.Name}
		for _, a := range addrs {
			n, _ := a.(*net.IPNet)
			if n == nil {
				continue
			}
			ones, _ := n.Mask.Size()
			ip, _ := netip.AddrFromSlice(n.IP)
			p := netip.PrefixFrom(ip.Unmap(), ones).Masked()
			if p.IsValid() && !p.IsSingleIP() && p.Bits() > 0 && !ip.IsLinkLocalUnicast() && !slices.Contains(x.Prefixes, p) {
				x.Prefixes = append(x.Prefixes, p)
			}
		}
		if len(x.Prefixes) > 0 {
			slices.SortFunc(x.Prefixes, func(a, b netip.Prefix) int {
				return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
			})
			all = append(all, x)
		}
	}
	return all, nil
}

// matching finds out whether a policy can have matches here. Without privileges that cannot be
// told, and they are taken to work, as nearly everywhere.
func (s *Survey) matching(links []link.Link) {
	r := cgroup.Probe()
	if r.Privileges != nil {
		s.gap("whether this kernel can match packets, which is taken for granted: %v", r.Privileges)
		return
	}
	for _, w := range r.Ways {
		if w.Way == bind.WayBPF && w.Err != nil {
			s.NoMatch = fmt.Errorf("it takes binding bpf, which is not to be had here: %w", w.Err)
			return
		}
	}
	host := match.Match{Host: []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 1)}}
	for _, l := range links {
		if slices.ContainsFunc(s.Uplinks, func(u Uplink) bool { return u.Name == l.Name }) {
			cfg := cgroup.Config{Interface: l.Name, Index: uint32(l.Index)}
			s.NoHost = cmp.Or(s.NoHost, cgroup.Matches(cfg, bind.WayBPF, []hierarchy.Matched{{Match: []match.Match{host}}}))
		}
	}
}

// processes looks at what runs: who listens, which containers and users there are.
func (s *Survey) processes(ctx context.Context, root string) error {
	tree, err := cgroupfs.FindV2()
	switch {
	case err == nil:
		defer tree.Close()
		if err := s.listeners(tree); err != nil {
			return err
		}
		if err := s.containers(ctx, tree, root); err != nil {
			return err
		}
	case errors.Is(err, cgroupfs.ErrNoCgroup2), errors.Is(err, caps.ErrNotPrivileged):
		s.gap("units that listen, and containers: %v", err)
	default:
		return err
	}
	return s.users()
}

// private says whether a port has nothing to do with a service: those of DHCP's clients and
// of mDNS, which wait for anybody.
func private(protocol uint16, port uint16) bool {
	return protocol == unix.IPPROTO_UDP && slices.Contains([]uint16{68, 546, 5353}, port)
}

// listeners finds who waits for others, by the cgroups of their sockets.
func (s *Survey) listeners(tree *cgroupfs.Tree) error {
	first, last := dynamicPorts()
	type place struct {
		protocol string
		port     uint16
	}
	open := map[uint64]map[place]bool{} // by cgroup
	err := socket.Diagnose(0, func(d socket.Diag) {
		protocol := map[uint16]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}[d.Protocol]
		port := d.Local.Port()
		switch {
		case !d.Open || protocol == "" || port == 0 || d.Cgroup == 0 || d.Local.Addr().IsLoopback() || private(d.Protocol, port):
		case d.Protocol == unix.IPPROTO_UDP && port >= first && port <= last: // of a client, most likely
		default:
			if open[d.Cgroup] == nil {
				open[d.Cgroup] = map[place]bool{}
			}
			open[d.Cgroup][place{protocol, port}] = true
		}
	})
	if err != nil {
		return err
	}
	by := map[bind.Binding]map[place]bool{}
	for id, places := range open {
		p, err := tree.Path(id)
		if err != nil {
			continue // the cgroup is gone, or not to be seen from here
		}
		b, ok := owner(p)
		if !ok {
			continue
		}
		if by[b] == nil {
			by[b] = map[place]bool{}
		}
		for x := range places {
			by[b][x] = true
		}
	}
	for b, places := range by {
		var all []place
		for x := range places {
			all = append(all, x)
		}
		slices.SortFunc(all, func(a, b place) int { return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port)) })
		text, was := "listens on", ""
		for i, x := range all {
			const most = 8
			if i == most {
				text += fmt.Sprintf(" and %d more", len(all)-most)
				break
			}
			if i > 0 {
				text += ","
			}
			if x.protocol != was {
				text += " " + x.protocol
				was = x.protocol
			}
			text += fmt.Sprintf(" %d", x.port)
		}
		if !isSSH(b) {
			s.Listeners = append(s.Listeners, Found{b, text})
			continue
		}
		s.Logins = append(s.Logins, Found{b, text})
		for _, x := range all {
			if x.protocol == "tcp" {
				s.SSH = append(s.SSH, x.port)
			}
		}
	}
	slices.Sort(s.SSH)
	s.SSH = slices.Compact(s.SSH)
	sortFound(s.Logins)
	sortFound(s.Listeners)
	return nil
}

func sortFound(all []Found) {
	slices.SortFunc(all, func(a, b Found) int { return strings.Compare(a.Bind.String(), b.Bind.String()) })
}

// owner is what a binding names a listener's cgroup by: the unit, else the cgroup itself.
// Containers and what users run are found otherwise, and so is what is in a branch already.
func owner(p string) (bind.Binding, bool) {
	if p == "/" || p == home.Root || strings.HasPrefix(p, home.Root+"/") || resolve.InContainer(p) {
		return bind.Binding{}, false
	}
	b := bind.Binding{Kind: bind.Cgroup, Name: p}
	if unit := resolve.UnitOf(p); unit != "" {
		if stem, is := strings.CutSuffix(unit, ".socket"); is {
			unit = stem + ".service" // which has its socket with it
		}
		if strings.HasPrefix(unit, "user@") || path.Ext(unit) != ".service" {
			return bind.Binding{}, false
		}
		b = bind.Binding{Kind: bind.Unit, Name: unit}
	}
	return b, exact(b)
}

// exact says whether a policy can have a binding, and it names one thing alone.
func exact(b bind.Binding) bool {
	_, err := bind.Parse(b.String())
	return err == nil && bind.Pattern(b.Name).Exact()
}

func isSSH(b bind.Binding) bool {
	stem, _, _ := strings.Cut(strings.TrimSuffix(path.Base(b.Name), ".service"), "@")
	return slices.Contains([]string{"ssh", "sshd", "dropbear"}, stem) || b.Kind == bind.Cgroup && stem == "openrc.sshd"
}

// dynamicPorts are those that the kernel gives to who asks for none.
func dynamicPorts() (first, last uint16) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(b), &first, &last)
	}
	if err != nil {
		return 32768, 60999 // the kernel's own choice
	}
	return first, last
}

// containers finds those that run. Pods come and go with their ids: they are one.
func (s *Survey) containers(ctx context.Context, tree *cgroupfs.Tree, root string) error {
	all, unread, err := resolve.Containers(ctx, tree, root)
	if err != nil {
		return err
	}
	if unread != nil {
		s.gap("the names of some containers, which stand here by their ids: %s", strings.ReplaceAll(unread.Error(), "\n", "; "))
	}
	pods := map[string]int{}
	for _, c := range all {
		top, _, _ := strings.Cut(strings.TrimPrefix(c.Cgroup, "/"), "/")
		if strings.TrimSuffix(top, ".slice") == "kubepods" {
			pods["/"+top]++
			continue
		}
		s.Containers = append(s.Containers, Found{bind.Binding{Kind: bind.Container, Name: c.Name}, "container in " + c.Cgroup})
	}
	for p, n := range pods {
		s.Containers = append(s.Containers, Found{bind.Binding{Kind: bind.Cgroup, Name: p}, fmt.Sprintf("all pods of Kubernetes: %d containers run", n)})
	}
	sortFound(s.Containers)
	return nil
}

// manyProcesses is how many processes a user has who is worth a branch.
const manyProcesses = 5

// users counts the processes of users, but for those of services and containers, and root's.
func (s *Survey) users() error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	const nobody = 65534
	count := map[uint32]int{}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Stat("/proc/"+e.Name(), &st) != nil || st.Uid == 0 || st.Uid == nobody {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/cgroup")
		if err != nil {
			continue // it has ended
		}
		if !served(string(b)) {
			count[st.Uid]++
		}
	}
	for uid, n := range count {
		if n < manyProcesses {
			continue
		}
		number := strconv.FormatUint(uint64(uid), 10)
		b := bind.Binding{Kind: bind.User, Name: number}
		if u, err := user.LookupId(number); err == nil {
			if by := (bind.Binding{Kind: bind.User, Name: u.Username}); exact(by) {
				b = by
			}
		}
		s.Users = append(s.Users, Found{b, fmt.Sprintf("%d processes", n)})
	}
	slices.SortFunc(s.Users, func(a, b Found) int {
		n := func(f Found) (n int) { n, _ = strconv.Atoi(strings.TrimSuffix(f.Text, " processes")); return n }
		return cmp.Or(cmp.Compare(n(b), n(a)), strings.Compare(a.Bind.Name, b.Bind.Name))
	})
	return nil
}

// served says of the cgroups of a process (/proc/PID/cgroup) whether it is a service's or a
// container's.
func served(cgroups string) bool {
	for line := range strings.Lines(cgroups) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			unit := resolve.UnitOf(f[2])
			if resolve.InContainer(f[2]) || strings.HasSuffix(unit, ".service") && !strings.HasPrefix(unit, "user@") {
				return true
			}
		}
	}
	return false
}
