package shaper

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/link"
)

// tellPlaces says what follows from the places of the interfaces among the others of
// the machine.
func (c *Changes) tellPlaces() error {
	m := c.m
	links, err := link.List(m.Conn)
	if err != nil {
		return err
	}
	m.TellPlaced(c.policy.Unquoted(Among(links)))
	var names []string
	for _, x := range c.Targets {
		names = append(names, x.Tree.Port.Device)
		for _, r := range x.Device.Remarks(x.Tree) {
			m.Warnf(hierarchy.Path(x.Tree.Port.Device), "%s", r)
		}
		i := slices.IndexFunc(links, func(l link.Link) bool { return l.Name == x.Tree.Port.Device })
		if i < 0 {
			continue // it vanished, which the next step finds, too
		}
		if w := OverLine(links[i], x.Tree.Root.Rate); w != "" {
			m.Warnf(hierarchy.Path(x.Tree.Port.Device), "%s", w)
		}
		if in := x.Tree.Ingress; in != nil {
			if w := OverIngress(links[i], in.Root.Rate); w != "" {
				m.Warnf(hierarchy.Path(x.Tree.Port.Device), "%s", w)
			}
			if err := x.tellArriving(m); err != nil {
				return err
			}
		}
		if n := newTreeNote(links[i]); n != "" && x.On(x.before).Root == (hierarchy.Root{}) {
			m.Notef(hierarchy.Path(x.Tree.Port.Device), "%s", n)
		}
	}
	warnings, err := Twice(links, names, func() (map[int]hierarchy.Root, error) { return tc.Roots(m.Conn) })
	for _, w := range warnings {
		m.Warnf("", "%s", w)
	}
	return err
}

// Among asks whether an interface is one of those.
func Among(links []link.Link) func(string) bool {
	return func(name string) bool {
		return slices.ContainsFunc(links, func(l link.Link) bool { return l.Name == name })
	}
}

// OverLine says of a rate that the line cannot carry what follows; it is empty
// where it can, and where the speed is unknown.
func OverLine(l link.Link, rate hierarchy.Bandwidth) string {
	if l.Speed == 0 || rate <= l.Speed {
		return ""
	}
	return fmt.Sprintf("%s: rate %s is above the %s of its line: what the line cannot carry waits in the driver or is dropped there, whatever its branch; write what the line carries, or a little less",
		l.Name, words.Short(rate), words.Short(l.Speed))
}

// ingressPart is how much of its line, in percent, a tree may receive at most. Measured
// with tbf at 100 mbit for the line, counting as HTB does: beside three downloads a small
// flow gets its answers within 0.2 ms (median) up to 98 mbit, and in 1.1 ms from 100 mbit on,
// where the queue stands before the line. Ethernet adds 24 bytes that neither counts: 1.6 %
// of full frames and 5 % of those of 480 bytes.
const ingressPart = 95

// OverIngress says of a rate for receiving that is too near to that of the line what
// follows; it is empty where it is not, and where the speed is unknown.
func OverIngress(l link.Link, rate hierarchy.Bandwidth) string {
	if l.Speed == 0 || rate <= l.Speed/100*ingressPart {
		return ""
	}
	return fmt.Sprintf("%s: ingress %s is above %d%% of its line, which is %s: what comes in faster waits at the other end of the line, where no branch comes first; write %s or less",
		l.Name, words.Short(rate), ingressPart, words.Short(l.Speed), words.Short(l.Speed/100*ingressPart))
}

// newTreeNote says what a first tree on an interface does not do, or takes away.
func newTreeNote(l link.Link) string {
	switch {
	case l.Kind == "bridge":
		return fmt.Sprintf("%s: what it forwards from port to port does not pass its tree, only what is this machine's own: shape the ports to shape both", l.Name)
	case l.Qdisc == "mq":
		return fmt.Sprintf("%s: one tree takes the place of mq, which serves its %d transmit queues side by side: processors that send take turns", l.Name, l.TxQueues)
	}
	return ""
}

// Twice warns of interfaces that shape the same packets, where one of them at
// least is among names: the others are shaped by vifshape or by somebody else
// already. Only where one may be are the roots read.
func Twice(links []link.Link, names []string, readRoots func() (map[int]hierarchy.Root, error)) ([]string, error) {
	shapers := map[int]shaper{}
	var roots map[int]hierarchy.Root
	for _, l := range links {
		switch {
		case slices.Contains(names, l.Name):
			shapers[l.Index] = shaper{named: true}
		case Shapes(l.Qdisc):
			if roots == nil {
				var err error
				if roots, err = readRoots(); err != nil {
					return nil, err
				}
			}
			if r := roots[l.Index]; r.Handle != 0 {
				shapers[l.Index] = shaper{root: r}
			}
		}
	}
	var all []stacked
	for _, upper := range links {
		u, ok := shapers[upper.Index]
		if !ok {
			continue
		}
		lowers := link.Carriers(links, upper)
		if upper.ByRoute {
			lowers = slices.DeleteFunc(slices.Clone(links), func(l link.Link) bool { return !onRoutes(l) })
		}
		for _, lower := range lowers {
			l, ok := shapers[lower.Index]
			if !ok || !u.named && !l.named {
				continue
			}
			s := stacked{lower.Name, nil, l, u, upper.ByRoute}
			i := slices.IndexFunc(all, s.like)
			if i < 0 {
				i, all = len(all), append(all, s)
			}
			all[i].uppers = append(all[i].uppers, upper.Name)
		}
	}
	var out []string
	for _, s := range all {
		out = append(out, s.String())
	}
	return out, nil
}

// Shapes says whether a kind of root qdisc limits, delays or drops on purpose.
func Shapes(qdisc string) bool {
	switch qdisc {
	case "htb", "tbf", "cake", "hfsc", "netem", "cbq":
		return true
	}
	return false
}

// onRoutes says whether a tunnel may leave by an interface. In a container that is
// one end of a pair, on a line with PPPoE a ppp.
func onRoutes(l link.Link) bool {
	switch l.Nature {
	case link.Physical, link.Bond, link.VLAN, link.Bridge:
		return true
	}
	return l.Peer() && l.Master == 0 || slices.Contains([]string{"macvlan", "ipvlan", "ppp"}, l.Kind)
}

// shaper is what shapes an interface: the policy, or the root qdisc that is there.
type shaper struct {
	named bool
	root  hierarchy.Root
}

// stacked is an interface that carries what others send, all of them shaped.
type stacked struct {
	lower   string
	uppers  []string
	of      shaper // lower
	ofUpper shaper // uppers
	byRoute bool   // and carries it only where the routes say so
}

func (s stacked) like(o stacked) bool {
	return s.lower == o.lower && s.of == o.of && s.ofUpper == o.ofUpper && s.byRoute == o.byRoute
}

func (s stacked) String() string {
	const most = 3
	names, send, both := strings.Join(s.uppers, " and "), "sends", "both"
	switch n := len(s.uppers); {
	case n > most:
		names = fmt.Sprintf("%s and %d more", strings.Join(s.uppers[:most-1], ", "), n-most+1)
		fallthrough
	case n > 1:
		send, both = "send", "all of them"
	}
	leaves := "leaves by it"
	if s.byRoute {
		leaves = "leaves by the route to the other end of the tunnel, which may lead by it"
	}
	who, what := "", ""
	switch {
	case s.of.named && s.ofUpper.named:
		who, what = "the policy shapes "+both, "shape "+s.lower+" alone, unless the two rates are meant to hold together"
	case s.of.named:
		who, what = s.ofUpper.already(s.uppers)
	default:
		who, what = s.of.already([]string{s.lower})
	}
	return fmt.Sprintf("%s: what %s %s %s, and %s: packets then wait twice and get the smaller rate; %s", s.lower, names, send, leaves, who, what)
}

// already says who shapes interfaces that the policy leaves alone, and how to end
// that.
func (s shaper) already(names []string) (who, what string) {
	name := names[0]
	if len(names) > 1 {
		name = "each of these"
	}
	if s.root.Ours() {
		return fmt.Sprintf("vifshape shapes %s already", name), fmt.Sprintf("`vifshape clear %s` ends that", strings.Join(names, " "))
	}
	who = fmt.Sprintf("%s has a root qdisc %s %v that vifshape did not make", name, s.root.Kind, s.root.Handle)
	if len(names) == 1 {
		name = words.Quoted(name)
	} else {
		name = "DEV"
	}
	return who, fmt.Sprintf("`tc qdisc del dev %s root` removes it, if what made it does not make it again", name)
}
