package cgroup_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// traffic is something that one process of a test sends.
type traffic struct {
	name string
	dir  string                // its cgroup
	ns   *lab.NetNS            // where it is, nil: at the near end
	user bool                  // it is user 65534
	open func(x *tctest.Actor) // before it sends what counts; may be nil
	send func(x *tctest.Actor)
	want hierarchy.ClassID // where all of it belongs
	n    uint64            // packets; 0: more than a few
	// weak says, for words that may be in the report of a way, where the traffic of
	// such a way goes, or some of it where n is 0.
	weak weakly
}

type weakly = map[string]hierarchy.ClassID

// nowhere is the class of packets that HTB has none for: it drops them.
const nowhere = hierarchy.ClassID(0)

// TestKernelClasses: whose class a packet gets, exactly, by every way. In the
// hierarchy a is red, a/deep/blue is blue, free is not bound; user 65534 is green
// where a way knows users. What a way does not hold, and only that, is in its
// report.
func TestKernelClasses(t *testing.T) {
	for _, way := range ways(t) {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			if way == bind.WayClsCgroup {
				err := n.hook.AttachCgroupFilter()
				if errors.Is(err, rtnl.ErrNotSupported) && !vm.Inside() {
					return // TestVM goes on
				}
				tctest.Require(t, !errors.Is(err, rtnl.ErrNotSupported), "filter kind cgroup (module cls_cgroup)")
			}
			p := newPlace(t, way)
			a, deep := sub(t, p.dir, "a"), sub(t, p.dir, "a", "deep", "blue")
			b := n.binder(t, way)
			bind := []hierarchy.Bound{bound(p.target(a), red), bound(p.target(deep), blue)}
			if v2(way) {
				bind = append(bind, bound("uid:65534", green))
			}
			apply(t, b, bind...)
			want := map[bool]string{true: "cgroup v2 at /", false: "net_cls at /"}[v2(way)]
			if why, err := b.Why(); err != nil || !strings.HasPrefix(why, want) {
				t.Errorf("why %q, error %v, want %s...", why, err, want)
			}

			weak := map[string]bool{} // whether it was seen
			for _, text := range report(t, way).Weak {
				name, _, ok := strings.Cut(text, ": ")
				if !ok {
					t.Errorf("no name in front of weakness %q", text)
				}
				weak[name] = false
			}
			if !v2(way) {
				b := bound("uid:65534", green)
				_, err := n.binder(t, way).Do(t.Context(), []hierarchy.Step{{Action: hierarchy.Create, New: &b}})
				if err == nil || !strings.Contains(err.Error(), "neither users") {
					t.Errorf("error of binding a user: %v", err)
				}
				_, err = n.crowded(t, way).Hook(0)
				if err == nil || !strings.Contains(err.Error(), "shape one interface") {
					t.Errorf("error of binding a second interface: %v", err)
				}
				weak["users"], weak["several interfaces"] = true, true
			}
			for _, tt := range n.traffic(t, p) {
				if tt.user && !v2(way) {
					continue
				}
				t.Run(tt.name, func(t *testing.T) {
					ns := n.Near
					if tt.ns != nil {
						ns = tt.ns
					}
					x := n.start(t, ns, tt.dir)
					if tt.user {
						x.Do("nobody")
					}
					want := tt.want
					for name, then := range tt.weak {
						if _, ok := weak[name]; ok {
							want, weak[name] = then, true
						}
					}
					if tt.open != nil {
						tt.open(x)
					}
					got := n.during(t, func() { tt.send(x) })
					if tt.n == 0 {
						if want != tt.want && got[want] > 0 {
							delete(got, tt.want)
						}
						only(t, got, want, 5)
						return
					}
					packets := counts{want: tt.n}
					if want == nowhere {
						packets = counts{}
					}
					if diff := cmp.Diff(packets, got); diff != "" {
						t.Errorf("packets a class (-want +got):\n%s", diff)
					}
				})
			}
			for name, seen := range weak {
				if !seen {
					t.Errorf("nothing shows the weakness %q", name)
				}
			}
		})
	}
}

// crowded is a Binder beside another that has its interface bound by tags.
func (n *network) crowded(t *testing.T, way bind.Way) *cgroup.Binder {
	t.Helper()
	return n.binderWith(t, cgroup.Config{Ways: []bind.Way{way}, Others: func() ([]string, error) { return []string{"eth1"}, nil }})
}

func (n *network) traffic(t *testing.T, p place) []traffic {
	a, grandchild := sub(t, p.dir, "a"), sub(t, p.dir, "a", "x", "y")
	deep, free := sub(t, p.dir, "a", "deep", "blue"), sub(t, p.dir, "free")
	far := n.start(t, n.Far, "")
	to4, to6 := n.Far4.String()+":9", "["+n.Far6.String()+"]:9"
	other, unshaped := green.String(), hierarchy.ID(0).String()
	const (
		priority = "SO_PRIORITY"
		packet   = "packet sockets"
		above    = "interfaces above"
		others   = "other network namespaces"
		listener = "answers to connections"
		orphan   = "closed connections of users"
		handed   = "sockets of somebody else"
	)
	do := func(format string, args ...any) func(*tctest.Actor) {
		return func(x *tctest.Actor) { x.Do(format, args...) }
	}
	frame := fmt.Sprintf("packet %d 100 ", n.device.Index)
	all := []traffic{
		{name: "udp", dir: a, send: do("udp %s 100", to4), want: red, n: 100},
		{name: "udp over IPv6", dir: a, send: do("udp %s 100", to6), want: red, n: 100},
		{name: "connected udp", dir: a, send: do("connected %s 100", to4), want: red, n: 100},
		{name: "udp in segments", dir: a, send: do("segments %s 40", to4), want: red, n: 40},
		{name: "udp in segments over IPv6", dir: a, send: do("segments %s 40", to6), want: red, n: 40},
		{name: "raw", dir: a, send: do("raw %s 100", to4), want: red, n: 100},
		{name: "grandchild", dir: grandchild, send: do("udp %s 100", to4), want: red, n: 100},
		{name: "deepest binding", dir: deep, send: do("udp %s 100", to4), want: blue, n: 100},
		{name: "not bound", dir: free, send: do("udp %s 100", to4), want: rest, n: 100},
		{name: "forked child with another program", dir: a, send: do("child udp %s 100", to4), want: red, n: 100},

		{name: "user", dir: free, user: true, send: do("udp %s 100", to4), want: green, n: 100},
		{name: "user in a bound cgroup", dir: a, user: true, send: do("udp %s 100", to4), want: red, n: 100},

		{name: "packet socket", dir: a, send: do(frame), want: red, n: 100, weak: weakly{packet: rest}},
		{name: "packet socket asks for another class", dir: a, send: do(frame + other), want: red, n: 100, weak: weakly{packet: rest, priority: green}},
		{name: "packet socket asks for the unshaped queue", dir: a, send: do(frame + unshaped), want: red, n: 100, weak: weakly{packet: rest, priority: nowhere}},
		{name: "packet socket, not bound, asks for another class", dir: free, send: do(frame + other), want: rest, n: 100, weak: weakly{priority: green}},

		{name: "root asks for another class", dir: a, send: do("udp %s 100 %s", to4, other), want: red, n: 100, weak: weakly{priority: green}},
		{name: "root asks for another class, connected, over IPv6", dir: a, send: do("connected %s 100 %s", to6, other), want: red, n: 100, weak: weakly{priority: green}},
		{name: "root asks for the unshaped queue", dir: a, send: do("udp %s 100 %s", to4, unshaped), want: red, n: 100, weak: weakly{priority: nowhere}},
		{name: "raw asks for the unshaped queue", dir: a, send: do("raw %s 100 %s", to4, unshaped), want: red, n: 100, weak: weakly{priority: nowhere}},
		{name: "not bound asks for another class", dir: free, send: do("udp %s 100 %s", to4, other), want: rest, n: 100, weak: weakly{priority: green}},
	}
	if tctest.HasLink(t, "macvlan") {
		another := tctest.NetNS(t)
		for i, ns := range []*lab.NetNS{n.Near, another} {
			onlyIPv4(t, ns)
			addr := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + i)}), 24)
			l := lab.Link{Name: fmt.Sprint("above", i), Kind: "macvlan", Parent: n.Dev, Addrs: []netip.Prefix{addr}}
			if i > 0 {
				l.NetNS = ns
			}
			if err := n.Near.AddLink(l); err != nil {
				t.Fatal(err)
			}
		}
		to := "198.51.100.255:9"
		all = append(all,
			traffic{name: "through an interface above", dir: a, send: do("udp %s 100", to), want: red, n: 100, weak: weakly{above: rest}},
			traffic{name: "through an interface above, asks for another class", dir: a, send: do("udp %s 100 %s", to, other), want: red, n: 100, weak: weakly{above: green, priority: green}},
			traffic{name: "through an interface above, asks for the unshaped queue", dir: free, send: do("udp %s 100 %s", to, unshaped), want: rest, n: 100, weak: weakly{priority: nowhere}},
			traffic{name: "from another namespace", dir: a, ns: another, send: do("udp %s 100", to), want: red, n: 100, weak: weakly{above: rest, others: rest}},
			traffic{name: "from another namespace, asks for the unshaped queue", dir: free, ns: another, send: do("udp %s 100 %s", to, unshaped), want: rest, n: 100, weak: weakly{priority: nowhere}},
		)
	}
	for i, ip := range []string{"IPv4", "IPv6"} {
		at := func(port int) string {
			return fmt.Sprintf([]string{n.Far4.String() + ":%d", "[" + n.Far6.String() + "]:%d"}[i], port)
		}
		here := []string{n.Near4.String() + ":7002", "[" + n.Near6.String() + "]:7002"}[i]
		for port, name := range map[int]string{7001: "client", 7003: "closed", 7004: "closer"} {
			far.Do("listen %s%d %s", name, i, at(port))
		}
		theirs := []string{n.Near4.String() + ":7005", "[" + n.Near6.String() + "]:7005"}[i]
		all = append(all,
			traffic{name: "tcp client over " + ip, dir: a, want: red, send: func(x *tctest.Actor) {
				far.Begin("serve client%d 1 0", i)
				x.Do("tcp %s 1000000", at(7001))
				far.End()
			}},
			traffic{name: "tcp connection that is closed over " + ip, dir: a, want: red, send: func(x *tctest.Actor) {
				x.Do("spill %s 150000", at(7003))
				far.Do("serve closed%d 1 0", i)
			}},
			traffic{name: "tcp connection of a user that is closed over " + ip, dir: free, user: true, want: green, weak: weakly{orphan: rest}, send: func(x *tctest.Actor) {
				x.Do("spill %s 150000", at(7004))
				far.Do("serve closer%d 1 0", i)
			}},
			traffic{name: "resets over " + ip, dir: a, want: red, n: 3, send: func(x *tctest.Actor) {
				x.Do("dial %s 1", at(7001)) // SYN, ACK, RST
			}},
			traffic{name: "connection of somebody else's listener over " + ip, dir: free, want: red, weak: weakly{handed: rest}, open: func(x *tctest.Actor) {
				x.Do("listen s %s", theirs)
				far.Do("connect c %s", theirs)
			}, send: func(x *tctest.Actor) {
				x.Do("join %s", a)
				x.Do("accept c s")
				far.Begin("drain c")
				x.Do("write c 100000")
				x.Do("finish c")
				far.End()
			}},
			traffic{name: "tcp listener over " + ip, dir: a, want: red, n: 100, weak: weakly{listener: rest}, send: func(x *tctest.Actor) {
				x.Do("listen s %s", here)
				far.Do("dial %s 100", here)
			}},
		)
	}
	return all
}
