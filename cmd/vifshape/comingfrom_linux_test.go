package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vifshape/vifshape/examples"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/survey"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// crossing is a part of examples/coming-from.md: what one typed for another tool, and what
// says the same here.
type crossing struct {
	tool, what string
	// blocks are the lines between fences, by language and whose they are: "sh theirs" is what
	// one typed, "sh makes" the lines of tc that this made, "toml ours" the policy.
	blocks map[string]string
}

func crossings(t *testing.T) (all []crossing) {
	t.Helper()
	tool, block := "", ""
	for line := range strings.Lines(examples.ComingFrom) {
		head, fence := strings.CutPrefix(line, "```")
		switch {
		case block != "" && fence:
			block = ""
		case block != "":
			all[len(all)-1].blocks[block] += line
		case fence:
			block = strings.TrimSpace(head)
			if len(strings.Fields(block)) != 2 || len(all) == 0 {
				t.Fatalf("a block is called %q: say whose it is, below a case", block)
			}
		case strings.HasPrefix(line, "## "):
			tool = strings.TrimSpace(line[3:])
		case strings.HasPrefix(line, "### "):
			all = append(all, crossing{tool, strings.TrimSpace(line[4:]), map[string]string{}})
		}
	}
	return all
}

// theirs are the lines that set up what one had.
func (x crossing) theirs() string { return cmp.Or(x.blocks["sh makes"], x.blocks["sh theirs"]) }

// special are the kinds of queues and filters in theirs that some kernels do not have.
func (x crossing) special() (kinds []string) {
	for word := range strings.FieldsSeq(x.theirs()) {
		if slices.Contains([]string{"sfq", "netem", "fw", "police"}, word) && !slices.Contains(kinds, word) {
			kinds = append(kinds, word)
		}
	}
	return kinds
}

// has says whether the kernel has a kind of queue or filter.
func has(t *testing.T, kind string) bool {
	t.Helper()
	switch kind {
	case "fw":
		return hasFilter(t, "handle 1 fw")
	case "police":
		return hasFilter(t, "u32 match u32 0 0 police rate 1mbit burst 10k drop")
	}
	return tctest.HasQdisc(t, kind)
}

// hasFilter says whether the kernel takes a filter.
func hasFilter(t *testing.T, filter string) bool {
	t.Helper()
	ns := tctest.NetNS(t)
	tctest.TC(t, ns, "qdisc", "add", "dev", "lo", "root", "handle", "9:", "htb")
	c := exec.CommandContext(t.Context(), tctest.RequireProgram(t, "tc"), strings.Fields("filter add dev lo parent 9: protocol ip "+filter+" classid 9:1")...)
	if err := ns.Start(c); err != nil {
		t.Fatal(err)
	}
	return c.Wait() == nil
}

// What one typed for another tool, and what examples/coming-from.md has beside it, come to
// the same in the kernel. What this machine's kernel lacks, that of TestVM has, where all else
// is left out.
func TestKernelComingFrom(t *testing.T) {
	tctest.RequireRoot(t)
	tctest.RequireProgram(t, "tc")
	tools := map[string]bool{}
	for _, x := range crossings(t) {
		tools[x.tool] = true
		ours := x.blocks["toml ours"]
		if ours == "" {
			t.Errorf("%s, %s: no policy", x.tool, x.what)
		}
		special := x.special()
		lacks := slices.DeleteFunc(slices.Clone(special), func(kind string) bool { return has(t, kind) })
		if vm.Inside() && len(special) == 0 || !vm.Inside() && len(lacks) > 0 {
			t.Logf("tried on another kernel: %s, %s, which takes %q", x.tool, x.what, special)
			continue
		}
		t.Run(x.tool+"/"+x.what, func(t *testing.T) {
			tctest.Require(t, len(lacks) == 0, strings.Join(lacks, ", "))
			switch {
			case x.tool == "trickle":
				x.sameAsTrickle(t)
			case x.blocks["yaml theirs"] != "":
				x.sameAsAnnotated(t)
			default:
				x.same(t)
			}
			if sections := x.blocks["ini theirs"]; sections != "" {
				n := newNetwork(t)
				got := n.ok("export", "--policy", n.policy("p.toml", ours), "--format", "networkd")
				if want, got := classSections(t, sections), classSections(t, got); !slices.Equal(want, got) {
					t.Errorf("classes of networkd %v, exported are %v", want, got)
				}
			}
		})
	}
	for _, tool := range []string{"tc", "FireQOS", "wondershaper", "trickle", "tcconfig", "systemd-networkd", "Cilium and the CNI plugin bandwidth"} {
		if !tools[tool] {
			t.Errorf("nothing is said of %s", tool)
		}
	}
}

// packets are those that are sent through both.
func packets() (all []flow) {
	for _, to := range []string{"10.1.2.3", "192.168.0.10", "192.0.2.1"} {
		for _, port := range []uint16{5060, 8080} {
			all = append(all, flow{to: to, port: port})
		}
	}
	return append(all, flow{to: "10.1.2.3", port: 9, tos: 0x10}, flow{to: "192.0.2.1", port: 9, tos: 0x10}, flow{to: "10.1.2.3", port: 9, mark: 0x10}, flow{to: "192.0.2.1", port: 9, mark: 0x7710})
}

// same holds that packets get into classes of the same rates, ceilings, order and netem, and
// that both directions have the same rate, by their lines and by ours.
func (x crossing) same(t *testing.T) {
	theirs, ours := newNetwork(t), newNetwork(t)
	if strings.Contains(x.theirs()+x.blocks["conf theirs"], "ifb") || x.blocks["conf theirs"] != "" {
		tctest.RequireLink(t, "ifb")
	}
	if conf := x.blocks["conf theirs"]; conf != "" {
		tctest.RequireProgram(t, "fireqos")
		file := theirs.policy("fireqos.conf", "FIREQOS_DEFAULT_QDISC=pfifo\n"+conf) // which every kernel has
		tctest.Output(t, theirs.Near, "unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /run && fireqos start "+file)
	} else {
		theirs.shell(x.theirs())
	}
	policy := x.blocks["toml ours"]
	ours.ok("apply", "--binding", "bpf", ours.policy("p.toml", policy))
	want, got := surveyed(t, theirs.Near, "eth0"), surveyed(t, ours.Near, "eth0")
	imported := theirs.ok("import", "eth0")
	became, tree := theirs.tree(imported), ours.tree(policy)
	received := hierarchy.Bandwidth(0)
	if tree.Ingress != nil {
		received = tree.Ingress.Root.Rate
	}
	x.commanded(t, tree.Root.Rate, received)

	if slices.Contains([]string{"htb", "tbf"}, want.Root.Kind) && became.Root.Rate != tree.Root.Rate {
		t.Errorf("what is sent has %v, theirs %v", tree.Root.Rate, became.Root.Rate)
	}
	if (became.Ingress == nil) != (tree.Ingress == nil) {
		t.Fatalf("only one of them has a rate for what is received\n%s", imported)
	}
	if tree.Ingress != nil && became.Ingress.Root.Rate != tree.Ingress.Root.Rate {
		t.Errorf("what is received has %v, theirs %v", tree.Ingress.Root.Rate, became.Ingress.Root.Rate)
	}
	if want.Root.Kind != "htb" || len(want.Classes) == 0 {
		a, b := became.Find("eth0/rest"), tree.Find("eth0/rest")
		if d := sameNetem(a.Qdisc, b.Qdisc); d != "" {
			t.Error(d)
		}
		return
	}

	flows := packets()
	had, have := theirs.carried(flows, want), ours.carried(flows, got)
	classes := branches(imported)
	hit := map[hierarchy.Path]bool{}
	for _, f := range flows {
		a, b := had[f], have[f]
		path := ours.pathOf(b.ID)
		hit[path] = true
		if a.Rate != b.Rate || a.Ceil != b.Ceil {
			t.Errorf("%+v has rate %v ceil %v in %s, theirs %v and %v", f, b.Rate, b.Ceil, path, a.Rate, a.Ceil)
		}
		if d := sameNetem(queueOf(want, a.ID), queueOf(got, b.ID)); d != "" {
			t.Errorf("%+v: %s", f, d)
		}
		for _, g := range flows {
			if cmp.Compare(a.Prio, had[g].Prio) != cmp.Compare(b.Prio, have[g].Prio) {
				t.Errorf("%+v and %+v have priorities %d and %d, theirs %d and %d", f, g, b.Prio, have[g].Prio, a.Prio, had[g].Prio)
				break
			}
		}
		if want.Receive == nil || len(want.Receive.Classes) < 3 {
			continue
		}
		if a, b := became.Ingress.Find(classes[a.ID.String()]), tree.Ingress.Find(path); a.Rate != b.Rate || a.Ceil != b.Ceil {
			t.Errorf("%+v receives by rate %v ceil %v, theirs %v and %v", f, b.Rate, b.Ceil, a.Rate, a.Ceil)
		}
	}
	for b := range tree.All() {
		if b.Leaf() && (len(b.Match) > 0 || b.Path.Base() == hierarchy.RestName) && !hit[b.Path] {
			t.Errorf("no packet was for %s", b.Path)
		}
	}
}

// commanded holds that the lines without a policy, for the whole interface or a program, make
// the same ceilings. 0 is none.
func (x crossing) commanded(t *testing.T, up, down hierarchy.Bandwidth) {
	t.Helper()
	for line := range strings.Lines(x.blocks["sh ours"]) {
		words := strings.Fields(line)
		i := slices.Index(words, "--")
		limits, runs := slices.Contains(words, "limit"), i > 0 && words[2] == "--up"
		if !limits && !runs {
			continue
		}
		n := newNetwork(t)
		n.shell("ip route add default via " + n.Far4.String())
		if limits {
			n.ok(words[1:]...)
		} else {
			r := n.start(n.command(append(slices.Clone(words[1:i+1]), "sleep", "600")...))
			defer func() { _ = r.Process.Kill(); r.wait() }()
		}
		for iface, want := range map[string]hierarchy.Bandwidth{"eth0": up, "vif-eth0": down} {
			if want == 0 {
				continue
			}
			n.until(fmt.Sprintf("a class with ceil %v on %s", want, iface), func() bool {
				return slices.ContainsFunc(n.classes(iface), func(c survey.Class) bool { return c.Ceil == want })
			})
		}
	}
}

// classes are those of an interface; none where it is not there.
func (n *network) classes(iface string) []survey.Class {
	n.Helper()
	c, err := rtnl.Open(rtnl.Config{NetNS: n.Near.FD()})
	if err != nil {
		n.Fatal(err)
	}
	defer c.Close()
	x, err := survey.Read(c, iface)
	if err != nil {
		return nil
	}
	return x.Classes
}

// surveyed is the traffic control of an interface.
func surveyed(t *testing.T, ns *lab.NetNS, iface string) *survey.Interface {
	t.Helper()
	c, err := rtnl.Open(rtnl.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	x, err := survey.Read(c, iface)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// carried are the classes that flows get into. Some packets may be lost where netem has it so.
func (n *network) carried(flows []flow, x *survey.Interface) map[flow]hierarchy.Class {
	n.Helper()
	leaves := map[string]hierarchy.Class{}
	for _, c := range x.Classes {
		if !slices.ContainsFunc(x.Classes, func(d survey.Class) bool { return d.Parent == c.ID }) {
			leaves[c.ID.String()] = c.Class
		}
	}
	for _, dst := range []string{"10.0.0.0/8", "192.168.0.0/16", "192.0.2.0/24"} {
		if err := n.Near.AddRoute(netip.MustParsePrefix(dst), n.Far4, n.Dev); err != nil {
			n.Fatal(err)
		}
	}
	counted := func() map[string]uint64 {
		all := map[string]uint64{}
		for _, c := range tctest.TCClasses(n, n.Near, n.Dev) {
			all[c.ID] = c.Packets
		}
		return all
	}
	all := map[flow]hierarchy.Class{}
	before := counted()
	for _, f := range flows {
		n.send(f)
		n.until(fmt.Sprintf("the packets of %+v", f), func() bool {
			now := counted()
			for id, c := range leaves {
				if now[id] > before[id]+datagrams/2 {
					all[f], before = c, now
					return true
				}
			}
			return false
		})
	}
	return all
}

// pathOf is the branch of a class.
func (n *network) pathOf(id hierarchy.ClassID) hierarchy.Path {
	n.Helper()
	r, err := n.store.Load(n.Dev)
	if err != nil {
		n.Fatal(err)
	}
	path, ok := r.IDs.Names(n.Dev)[id]
	if !ok {
		n.Fatalf("no branch has class %v", id)
	}
	return path
}

// queueOf is the queue of a class.
func queueOf(x *survey.Interface, id hierarchy.ClassID) hierarchy.Qdisc {
	for _, q := range x.Leaves {
		if q.Parent == id {
			return q.Leaf
		}
	}
	return hierarchy.Qdisc{}
}

// sameNetem says how two queues differ where one of them is a netem.
func sameNetem(a, b hierarchy.Qdisc) string {
	if a.Kind != "netem" && b.Kind != "netem" {
		return ""
	}
	if a.Kind != b.Kind {
		return fmt.Sprintf("the queue is %s, theirs %s", b.Kind, a.Kind)
	}
	for _, name := range []string{"delay", "jitter", "loss", "duplicate", "corrupt", "limit"} {
		v, _ := a.Get(name)
		w, _ := b.Get(name)
		if fmt.Sprint(v) != fmt.Sprint(w) {
			return fmt.Sprintf("netem has %s %v, theirs %v", name, w, v)
		}
	}
	return ""
}

// sameAsTrickle holds that the branch has the numbers of trickle's flags, in KB of 1,024 bytes
// a second, in the kernel, in both directions.
func (x crossing) sameAsTrickle(t *testing.T) {
	theirs := x.blocks["sh theirs"]
	up, down := x.flag(t, theirs, "-u"), x.flag(t, theirs, "-d")
	x.capped(t, "eth0/slow", hierarchy.Bandwidth(up*1024*8), hierarchy.Bandwidth(down*1024*8))
	x.commanded(t, hierarchy.Bandwidth(up*1024*8), hierarchy.Bandwidth(down*1024*8))
}

// sameAsAnnotated holds that the branch has the numbers of a pod's annotations, quantities of
// bit/s.
func (x crossing) sameAsAnnotated(t *testing.T) {
	theirs := x.blocks["yaml theirs"]
	up, down := x.flag(t, theirs, "egress-bandwidth:"), x.flag(t, theirs, "ingress-bandwidth:")
	x.capped(t, "eth0/shop", hierarchy.Bandwidth(up)*hierarchy.Mbit, hierarchy.Bandwidth(down)*hierarchy.Mbit)
}

// flag is the number behind a word.
func (x crossing) flag(t *testing.T, text, word string) uint64 {
	t.Helper()
	m := regexp.MustCompile(regexp.QuoteMeta(word) + ` "?(\d+)M?`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in %s", word, text)
	}
	v, err := strconv.ParseUint(m[1], 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// capped holds that a branch has ceilings, in both directions, once its policy is in force.
func (x crossing) capped(t *testing.T, path hierarchy.Path, up, down hierarchy.Bandwidth) {
	t.Helper()
	tctest.RequireLink(t, "ifb")
	n := newNetwork(t)
	file := n.policy("policy.toml", x.blocks["toml ours"])
	n.ok("apply", "--binding", "bpf", file)
	got := map[hierarchy.Direction]hierarchy.Bandwidth{}
	for direction, iface := range map[hierarchy.Direction]string{hierarchy.Send: "eth0", hierarchy.Receive: "vif-eth0"} {
		for _, c := range surveyed(t, n.Near, iface).Classes {
			if n.pathOf(c.ID) == path {
				got[direction] = c.Ceil
			}
		}
	}
	if want := map[hierarchy.Direction]hierarchy.Bandwidth{hierarchy.Send: up, hierarchy.Receive: down}; !maps.Equal(want, got) {
		t.Errorf("ceilings %v, theirs %v", got, want)
	}
}

// classSections are the rates, ceilings and priorities of the classes below the first one of a
// systemd.network file.
func classSections(t *testing.T, text string) (all []string) {
	t.Helper()
	for _, section := range strings.Split(text, "\n[")[1:] {
		lines := strings.Split(section, "\n")
		if lines[0] != "HierarchyTokenBucketClass]" {
			continue
		}
		values := map[string]string{}
		for _, l := range lines[1:] {
			if k, v, ok := strings.Cut(l, "="); ok {
				values[k] = strings.Replace(v, "M", "000000", 1)
			}
		}
		if values["Parent"] != "root" {
			all = append(all, fmt.Sprintf("rate %s ceil %s priority %s", values["Rate"], values["CeilRate"], values["Priority"]))
		}
	}
	if len(all) == 0 {
		t.Errorf("no classes in %s", text)
	}
	slices.Sort(all)
	return all
}
