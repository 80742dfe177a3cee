package policy

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// level says what a table of the file stands for.
type level uint8

const (
	levelFile level = 1 << iota
	levelInterfaces
	levelInterface
	levelBranch
	levelQdisc
	levelIngress       // what holds for receiving, of an interface
	levelBranchIngress // and of a branch

	inInterface = levelInterface | levelIngress
	inBranch    = levelBranch | levelBranchIngress
	inIngress   = levelIngress | levelBranchIngress
)

// word is a key of the file and the tables that have it.
type word struct {
	name string
	in   level
}

var words = []word{
	{"version", levelFile}, {"binding", levelFile}, {"interface", levelFile},
	{"rate", inInterface | inBranch}, {"ceil", inInterface | inBranch},
	{"prio", inBranch}, {"burst", inInterface | inBranch}, {"cburst", inInterface | inBranch},
	{"quantum", inBranch}, {"qdisc", inBranch}, {"ingress", levelInterface | levelBranch},
	{"flows", levelIngress}, {"bind", levelBranch}, {"pods", levelBranch}, {"match", levelBranch}, {"delegate", levelBranch},
	{"renamed_from", levelBranch},
	{"overhead", levelInterface}, {"mpu", levelInterface}, {"linklayer", levelInterface},
	{"mtu", levelInterface}, {"replace", levelInterface},
}

// known are the words that tables of a level have.
func known(l level) []string {
	var names []string
	for _, w := range words {
		if w.in&l != 0 {
			names = append(names, w.name)
		}
	}
	return names
}

// where are the levels of a word, 0 when there is no such word.
func where(name string) level {
	for i := range words {
		if words[i].name == name {
			return words[i].in
		}
	}
	return 0
}

// others are names that people bring along from other tools, and what they are
// called here.
var others = []struct{ from, to string }{
	{"bandwidth", "rate"}, {"speed", "rate"}, {"min", "rate"}, {"guarantee", "rate"},
	{"max", "ceil"}, {"ceiling", "ceil"},
	{"up", "rate"}, {"upload", "rate"}, {"uplink", "rate"}, {"upstream", "rate"}, {"egress", "rate"}, {"outgoing", "rate"},
	{"down", "ingress"}, {"download", "ingress"}, {"downlink", "ingress"}, {"downstream", "ingress"},
	{"receive", "ingress"}, {"incoming", "ingress"}, {"inbound", "ingress"}, {"input", "ingress"}, {"rx", "ingress"},
	{"ingress_rate", "ingress"}, {"ingress-rate", "ingress"},
	{"priority", "prio"}, {"cgroup", "bind"}, {"unit", "bind"}, {"user", "bind"},
	{"filter", "match"}, {"filters", "match"}, {"rule", "match"}, {"rules", "match"}, {"matches", "match"}, {"classify", "match"},
	{"renamed", "renamed_from"}, {"was", "renamed_from"}, {"formerly", "renamed_from"}, {"old_name", "renamed_from"}, {"renamed-from", "renamed_from"},
	{"pod", "pods"}, {"kubernetes", "pods"},
	{"owner", "delegate"}, {"owners", "delegate"}, {"users", "delegate"},
	{"leaf", "qdisc"}, {"queue", "qdisc"}, {"scheduler", "qdisc"},
}

// other is the word for what others call so, empty when they do not.
func other(name string) string {
	for _, o := range others {
		if o.from == name {
			return o.to
		}
	}
	return ""
}

// foreign are the names that [other] knows.
func foreign() (names []string) {
	for _, o := range others {
		names = append(names, o.from)
	}
	return names
}

// node is one table of the file that is a part of the tree.
type node struct {
	level  level
	values map[string]any
	path   hierarchy.Path
	branch *hierarchy.BranchSpec
	iface  *hierarchy.Spec  // of an interface
	kids   map[string]*node // tables seen; nil: reported, and nothing below it counts
	bound  []int            // places in the file's list of branch.Bind, where they differ
	given  []int            // the same of branch.Delegate
	pods   []int            // and of branch.Pods
	match  []matchPlace     // where each of branch.Match stands
	bad    []string         // of a qdisc: parameters that are reported
	within string           // the keys of the branch that the table is below, each with a dot behind it
	entry  int              // that names the table
	depth  int              // number of parts of the table's key
}

// reader interprets a decoded document in the order of the file.
type reader struct {
	*report
	keys   []toml.Key
	kinds  []hierarchy.Kind
	policy *Policy
	ifaces []*node
	qdiscs []*node
	at     int  // entry being read
	lost   bool // something that was meant as an interface is reported
	partly bool // a part of the file is not there: only what is wrong by itself is reported

	entries  map[string]int   // by key, its parts joined by NUL; made by entry
	headers  map[string][]int // entries of the headers of tables in a list, by key as well; made by headed
	list     int              // offset of the list that was last looked into
	elements []int            // of that list
}

// read interprets the document, fills in the policy, and reports what is wrong.
func (r *reader) read(doc map[string]any) {
	if len(r.keys) == 0 {
		if r.partly {
			return
		}
		r.add(mistake{msg: "the policy is empty", hint: `write version = 1, and [interface.eth0] with rate = "..." below it`})
		return
	}
	if !r.version(doc) {
		return
	}
	// The tables on the way to the key before: keys of one table follow each
	// other, so most are found without going down from the top.
	trail := []*node{{level: levelFile, values: doc}}
	var last toml.Key
	for i, key := range r.keys {
		r.at = i
		d := 0
		for d < len(trail)-1 && d < len(key) && key[d] == last[d] {
			d++
		}
		trail = trail[:d+1]
		for _, name := range key[d:] {
			n := r.enter(trail[len(trail)-1], name)
			if n == nil {
				break
			}
			trail = append(trail, n)
		}
		if n := trail[len(trail)-1]; n.depth == len(key) && len(r.keys[n.entry]) > n.depth {
			n.entry = i // named in passing before, now by itself
		}
		last = key
	}
	for _, q := range r.qdiscs {
		if q.branch.Qdisc.Kind == "" {
			if _, ok := q.values["kind"]; !ok && !r.partly {
				r.add(mistake{off: r.place(q), path: q.path, key: q.within + "qdisc", msg: "qdisc has no kind", hint: `write kind = "fq_codel"`})
			}
			q.branch.Qdisc = nil
		}
	}
	if r.partly {
		return
	}
	r.quoting()
	if len(r.ifaces) == 0 && !r.lost {
		r.add(mistake{msg: "the policy has no interface", hint: "write [interface.eth0] with the rate of the link below it"})
	}
	for _, n := range r.ifaces {
		tree, problems := hierarchy.Resolve(n.iface, r.kinds)
		for _, p := range problems {
			r.problem(n, p)
		}
		r.policy.Trees = append(r.policy.Trees, tree)
		r.policy.Specs = append(r.policy.Specs, n.iface)
	}
}

// quoting warns of names that are written as `ip link` prints them, and mean something
// else here.
func (r *reader) quoting() {
	for _, n := range r.ifaces {
		name := n.iface.Interface
		if before, link, ok := strings.Cut(name, "@"); ok && before != "" && linked(link) {
			r.add(mistake{off: r.place(n), path: n.path, warning: true, msg: fmt.Sprintf("`ip link` prints the name %s so", before), hint: fmt.Sprintf("leave out @%s: write [%s]", link, toml.Key{"interface", before})})
		}
		for _, b := range n.branch.Children {
			// With its rate in place it may well be a branch: only the machine knows.
			if v := name + "." + b.Name; n.branch.Rate == (hierarchy.Amount{}) && !n.branch.Broken && VLAN(v) && n.kids[b.Name] != nil {
				msg, hint := unquoted(name, b.Name)
				r.add(mistake{off: r.place(n.kids[b.Name]), path: n.path.Join(b.Name), warning: true, msg: msg, hint: hint})
			}
		}
	}
}

// linked says whether it is what `ip link` prints behind a name and @ where the other
// end is not to be seen.
func linked(s string) bool {
	index, ok := strings.CutPrefix(s, "if")
	return s == "NONE" || ok && index != "" && strings.Trim(index, "0123456789") == ""
}

// version checks the version first: the meaning of everything else depends on
// it.
func (r *reader) version(doc map[string]any) bool {
	i := slices.IndexFunc(r.keys, func(k toml.Key) bool { return k[0] == "version" })
	if i < 0 {
		near := func(k toml.Key) bool { return hierarchy.Nearest(k[0], []string{"version"}) != "" }
		if !slices.ContainsFunc(r.keys, near) && !r.partly { // otherwise that one is reported
			hint := "write version = 1 in the first line"
			if under, ok := strings.CutSuffix(filepath.Dir(r.file), OverSuffix); ok {
				hint = fmt.Sprintf("what lies there is laid over %s and needs none: check that file", under)
			}
			r.add(mistake{msg: "version is missing", hint: hint})
		}
		return true
	}
	r.at = i
	top := &node{level: levelFile}
	switch v := doc["version"].(type) {
	case int64:
		if v == 1 {
			return true
		}
		r.value(top, "version", fmt.Sprintf("version %d is not known; this vifshape reads version 1", v), "")
		return false
	case map[string]any, []map[string]any:
		r.key(top, "version", "version is a table, but must be a number", "write version = 1 in the first line")
	default:
		r.value(top, "version", fmt.Sprintf("version is %s, but must be a number", describe(v)), "write version = 1")
	}
	return true
}

// key reports a mistake at the key of the entry being read.
func (r *reader) key(n *node, key, msg, hint string) {
	off, _ := r.index.part(r.at, n.depth, len(r.keys[r.at]))
	r.add(mistake{off: off, path: n.path, key: n.within + key, msg: msg, hint: hint})
}

// warn is key for what is allowed.
func (r *reader) warn(n *node, key, msg, hint string) {
	r.key(n, key, msg, hint)
	r.found[len(r.found)-1].warning = true
}

// value reports a mistake at the value of the entry being read, or at its key
// where it has no value of its own.
func (r *reader) value(n *node, key, msg, hint string) {
	off := int(r.index.entries[r.at].val)
	if off < 0 || len(r.keys[r.at]) > n.depth+1 {
		r.key(n, key, msg, hint)
		return
	}
	r.add(mistake{off: off, path: n.path, key: n.within + key, value: true, msg: msg, hint: hint})
}

// place is where the table of n is named.
func (r *reader) place(n *node) int {
	off, _ := r.index.part(n.entry, n.depth-1, len(r.keys[n.entry]))
	return off
}

// enter reads what is called name in the table n. It returns the table that it
// is, or nil when there is nothing to go on with.
func (r *reader) enter(n *node, name string) *node {
	if kid, ok := n.kids[name]; ok {
		return kid
	}
	v := n.values[name]
	table, isTable := v.(map[string]any)
	if !isTable {
		// What lies deeper is in a list of tables, which has been reported.
		if len(r.keys[r.at]) == n.depth+1 {
			r.scalar(n, name, v)
		}
		if _, list := v.([]map[string]any); list {
			n.setKid(name, nil)
		}
		return nil
	}
	var kid *node
	switch {
	case n.level == levelQdisc:
		r.param(n, name, v)
	case n.level == levelFile && name == "interface":
		kid = &node{level: levelInterfaces}
	case n.level == levelFile && where(name) == levelFile:
		if name != "version" { // reported already
			r.key(n, name, name+" is a table, but must be a string", `write binding = "auto"`)
		}
	case n.level == levelFile:
		r.unknownTable(n, name)
	case n.level == levelInterfaces:
		kid = r.newInterface(name)
	case n.level&inBranch != 0 && name == "qdisc":
		kid = &node{level: levelQdisc, path: n.path, branch: n.branch, within: n.within}
		n.branch.Qdisc = &hierarchy.RawQdisc{}
		r.qdiscs = append(r.qdiscs, kid)
	case n.level&inIngress != 0:
		r.tableInIngress(n, name)
	case n.level == levelBranch && name == "match":
		r.matches(n, v)
	case name == "ingress":
		kid = &node{level: levelIngress, path: n.path, branch: &hierarchy.BranchSpec{}, iface: n.iface, within: "ingress."}
		if n.level == levelBranch {
			kid.level = levelBranchIngress
		}
		n.branch.Ingress = kid.branch
	default:
		kid = r.newBranch(n, name)
	}
	n.setKid(name, kid)
	if kid != nil {
		kid.values, kid.entry, kid.depth = table, r.at, n.depth+1
	}
	return kid
}

func (n *node) setKid(name string, kid *node) {
	if n.kids == nil {
		n.kids = map[string]*node{}
	}
	n.kids[name] = kid
}

func (r *reader) newInterface(name string) *node {
	s := &hierarchy.Spec{Interface: name}
	n := &node{level: levelInterface, path: hierarchy.Path(name), branch: &s.BranchSpec, iface: s}
	r.ifaces = append(r.ifaces, n)
	return n
}

func (r *reader) newBranch(n *node, name string) *node {
	lower := strings.ToLower(name)
	switch {
	case where(name)&^levelFile != 0:
		hint := fmt.Sprintf("give the branch another name, or write %s = with a value", name)
		if name == "qdisc" {
			hint = "an interface's queues are its leaves': write it in a branch, for example in " + header(n, hierarchy.RestName)
		}
		r.key(n, name, fmt.Sprintf("%q is a key of the policy and cannot name a branch", name), hint)
		return nil
	case where(lower)&^levelFile != 0:
		r.key(n, name, fmt.Sprintf("the name %q differs from the key %q only in case", name, lower), fmt.Sprintf("write %s if the key is meant; otherwise give the branch another name", lower))
		return nil
	}
	if lower == hierarchy.RestName && name != lower {
		r.warn(n, name, fmt.Sprintf("%q is a branch as any other, beside the %s that is always there", name, lower), fmt.Sprintf("write %s in lower case if what no binding claims is meant", header(n, lower)))
	}
	b := &hierarchy.BranchSpec{Name: name}
	n.branch.Children = append(n.branch.Children, b)
	return &node{level: levelBranch, path: n.path.Join(name), branch: b}
}

// header is the table header of what is called so below the branch of n.
func header(n *node, names ...string) string {
	k := append(toml.Key{"interface"}, strings.Split(string(n.path), "/")...)
	return "[" + append(k, names...).String() + "]"
}

// tableInIngress reports a table below ingress that is not its qdisc.
func (r *reader) tableInIngress(n *node, name string) {
	switch {
	case where(name)&n.level != 0:
		r.key(n, name, name+" is a table, but must be a single value", fmt.Sprintf("write %s = with a value", name))
	case name == "ingress", where(name) == levelFile, hierarchy.Nearest(name, known(n.level)) != "":
		r.unknown(n, name)
	case where(name) != 0:
		r.misplaced(n, name)
	default:
		r.key(n, name, fmt.Sprintf("ingress has a table %q, but the branches are the same in both directions", name), fmt.Sprintf("write ingress below %s", header(n, name)))
	}
}

// unknownTable reports a table at the top of the file that is not [interface].
func (r *reader) unknownTable(n *node, name string) {
	r.lost = true
	msg := fmt.Sprintf("unknown table %q", name)
	switch {
	case hierarchy.Nearest(name, []string{"interface"}) != "":
		r.key(n, name, msg, `did you mean "interface"?`)
		return
	case where(name) != 0:
		r.key(n, name, msg, "it belongs to an interface or a branch: write it below [interface.eth0]")
		return
	}
	r.key(n, name, msg, fmt.Sprintf("interfaces stand below interface: write [%s]", toml.Key{"interface", name}))
}

// unknown reports a key that n's table does not have.
func (r *reader) unknown(n *node, name string) {
	msg := fmt.Sprintf("unknown key %q", name)
	names := known(n.level)
	lower := strings.ToLower(name)
	meant := other(hierarchy.Nearest(lower, foreign()))
	var hint string
	switch kind := r.parameter(lower); {
	case slices.Contains(names, lower):
		hint = fmt.Sprintf("keys are written in lower case: %s", lower)
	case n.level&inBranch != 0 && lower == "kind":
		hint = `kind stands in a table called qdisc: qdisc = { kind = "fq_codel" }`
	case n.level&inBranch != 0 && lower == "limit":
		hint = "ceil limits the bandwidth; the limit of a queue stands with its kind: qdisc = { kind = \"fq_codel\", limit = 1024 }"
	case slices.Contains(names, other(lower)):
		hint = fmt.Sprintf("it is called %s here", other(lower))
	case n.level == levelBranch && matchKey(lower) != "":
		hint = fmt.Sprintf("which packets a branch carries stands in match: match = [{ %s = ... }]", matchKey(lower))
	case n.level&inIngress != 0 && (lower == "ingress" || other(lower) == "ingress"):
		hint = "it is called rate here"
	case n.level&inBranch != 0 && kind != "":
		hint = fmt.Sprintf("%s is a parameter of queueing disciplines: qdisc = { kind = %q, %s = ... }", lower, kind, lower)
	case hierarchy.Nearest(name, names) != "":
		hint = fmt.Sprintf("did you mean %q?", hierarchy.Nearest(name, names))
	case slices.Contains(names, meant):
		hint = fmt.Sprintf("did you mean %q?", meant)
	case n.level == levelFile && (where(lower)|where(other(lower)))&(levelInterface|levelBranch) != 0:
		hint = "it belongs to an interface or a branch: write it below [interface.eth0]"
	case where(lower) == levelFile:
		hint = "it stands at the top of the file, before the first header"
	default:
		hint = "known here are " + strings.Join(names, ", ")
	}
	r.key(n, name, msg, hint)
}

// parameter is the first kind that has a parameter called name.
func (r *reader) parameter(name string) string {
	for i := range r.kinds {
		if r.kinds[i].Param(name) != nil {
			return r.kinds[i].Name
		}
	}
	return ""
}

// scalar reads a value that is not a table.
func (r *reader) scalar(n *node, name string, v any) {
	switch n.level {
	case levelFile:
		r.fileKey(n, name, v)
		return
	case levelInterfaces:
		r.noInterface(n, name, v)
		return
	case levelQdisc:
		r.param(n, name, v)
		return
	}
	in := where(name)
	switch {
	case in&n.level == 0 && tables(v) && n.level&inIngress != 0:
		r.tableInIngress(n, name)
		return
	case in&^levelFile == 0 && tables(v) && other(strings.ToLower(name)) != "match":
		r.key(n, name, fmt.Sprintf("branch %q is a list of tables, but must be one table", name), fmt.Sprintf("write %s with single brackets", header(n, name)))
		return
	case in&^levelFile == 0, name == "ingress" && n.level&inIngress != 0:
		r.unknown(n, name)
		return
	case in&n.level == 0:
		r.misplaced(n, name)
		return
	}
	b := n.branch
	switch name {
	case "rate":
		r.amount(n, name, v, b, &b.Rate)
	case "ceil":
		r.amount(n, name, v, b, &b.Ceil)
	case "ingress":
		b.Ingress = &hierarchy.BranchSpec{}
		r.amount(n, name, v, b.Ingress, &b.Ingress.Rate)
	case "burst":
		r.size(n, name, v, "15kb", &b.Burst)
	case "cburst":
		r.size(n, name, v, "15kb", &b.CBurst)
	case "quantum":
		r.size(n, name, v, "3000b", &b.Quantum)
	case "mpu":
		r.size(n, name, v, "64b", &n.iface.Line.MPU)
	case "mtu":
		r.size(n, name, v, "1500b", &n.iface.MTU)
	case "prio":
		if i, ok := r.integer(n, name, v, 0, hierarchy.MaxPrio, "0 comes first, 7 last"); ok {
			p := uint8(i)
			b.Prio = &p
		}
	case "flows":
		if i, ok := r.integer(n, name, v, hierarchy.MinFlows, hierarchy.MaxFlows, "how many flows are known at once, each in 128 bytes of memory or a little more; left out, it is 65536, or 64 for each branch"); ok {
			n.iface.Flows = uint32(i)
		}
	case "overhead":
		if i, ok := r.integer(n, name, v, 1, hierarchy.MaxOverhead, "the bytes that the line sends besides each IP packet, as a bare number; without it packets count as in the kernel"); ok {
			n.iface.Line.Overhead = int16(i)
		}
	case "linklayer":
		s, ok := v.(string)
		if !ok || s == "" {
			r.value(n, name, fmt.Sprintf("linklayer is %s, but must be the name of a kind of line", quote(v)), "known are "+strings.Join(hierarchy.Layers(), ", "))
			return
		}
		n.iface.Line.Layer = s
	case "replace":
		x, ok := v.(bool)
		if !ok {
			r.value(n, name, fmt.Sprintf("replace is %s, but must be true or false", describe(v)), "write replace = true to take the place of a queueing discipline that somebody else set up")
		}
		n.iface.Replace = x
	case "qdisc":
		r.qdisc(n, v)
	case "bind":
		n.branch.Bind, n.bound = list(r, n, name, v, "a binding", "unit:nginx.service", boundByPolicy)
	case "renamed_from":
		s, ok := v.(string)
		if !ok || s == "" {
			r.value(n, name, fmt.Sprintf("renamed_from is %s, but must be the name that the branch had", quote(v)), `write renamed_from = "web", or where it had another parent its whole path, as in "eth0/office/web"`)
			return
		}
		b.RenamedFrom = s
	case "match":
		r.matches(n, v)
	case "pods":
		n.branch.Pods, n.pods = list(r, n, name, v, "one of pods", "shop/*", bind.ParsePods)
	case "delegate":
		n.branch.Delegate, n.given = list(r, n, name, v, "a delegate", "alice", bind.ParseDelegate)
	}
}

// misplaced reports a key that tables of another level have.
func (r *reader) misplaced(n *node, name string) {
	in, top := where(name), fmt.Sprintf("[%s]", toml.Key{"interface", n.path.Interface()})
	switch {
	case name == "flows":
		hint := "write it in the ingress of " + top + `: ingress = { rate = "250mbit", flows = 200000 }`
		if n.level&inBranch != 0 {
			hint += "; the flows of a queue stand with its kind: qdisc = { kind = \"fq_codel\", flows = 1024 }"
		}
		r.key(n, name, "flows belongs to the ingress of the interface: its branches share one table of what is received", hint)
	case n.level&inIngress != 0 && in&levelInterface != 0:
		r.key(n, name, name+" belongs to the interface and holds for both directions", "move it below "+top)
	case n.level == levelBranchIngress:
		r.key(n, name, name+" belongs to a branch and holds for both directions", "move it out of ingress")
	case n.level == levelBranch:
		r.key(n, name, name+" belongs to the interface", "move it below "+top)
	case name == "bind":
		r.key(n, name, "bind belongs to a branch: the interface's own traffic is the rest", "write it in a branch, for example in "+header(n, "web"))
	case name == "match":
		r.key(n, name, "match belongs to a branch: what none fits is the interface's rest", "write it in a branch, for example in "+header(n, "web"))
	case name == "pods":
		r.key(n, name, "pods belongs to a branch: those that no branch has are the interface's rest", "write it in a branch, for example in "+header(n, "web"))
	case name == "renamed_from":
		r.key(n, name, "renamed_from belongs to a branch: an interface keeps its tree when it gets another name", "remove it, and write the header with the new name")
	case name == "delegate":
		r.key(n, name, "delegate belongs to a branch: the interface as a whole is root's", "write it in a branch, for example in "+header(n, "web"))
	case n.level == levelIngress:
		r.key(n, name, name+" belongs to a branch", "write it in a branch's ingress, for example in "+header(n, hierarchy.RestName, "ingress"))
	default:
		r.key(n, name, name+" belongs to a branch", "write it in a branch, for example in "+header(n, hierarchy.RestName))
	}
}

// noInterface reports what stands directly below [interface] and is no table.
func (r *reader) noInterface(n *node, name string, v any) {
	r.lost = true
	switch {
	case tables(v):
		r.key(n, name, fmt.Sprintf("interface %q is a list of tables, but must be one table", name), fmt.Sprintf("write [%s] with single brackets", toml.Key{"interface", name}))
	case where(name) != 0:
		r.key(n, name, fmt.Sprintf("%s stands outside of any interface", name), "write it below a header with a name, such as [interface.eth0]")
	default:
		r.key(n, name, fmt.Sprintf("interface %q is %s, but must be a table", name, describe(v)), fmt.Sprintf("write [%s] with its rate below it", toml.Key{"interface", name}))
	}
}

// fileKey reads a key at the top of the file.
func (r *reader) fileKey(n *node, name string, v any) {
	switch name {
	case "version": // read already
	case "binding":
		bindings := []string{"auto", "bpf", "nft", "net_cls"}
		s, ok := v.(string)
		if !ok || !slices.Contains(bindings, s) {
			hint := `leave it out, or write "auto", to take the best way that the machine offers`
			if near := hierarchy.Nearest(s, bindings); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			r.value(n, name, fmt.Sprintf("binding is %s, but must be \"auto\", \"bpf\", \"nft\" or \"net_cls\"", quote(v)), hint)
			return
		}
		r.policy.Binding = s
	case "interface":
		r.lost = true
		if tables(v) {
			r.key(n, name, "interfaces are tables with a name, not a list of tables", "write [interface.eth0] for each, with single brackets")
		} else {
			r.value(n, name, fmt.Sprintf("interface is %s, but must be a table", describe(v)), "write [interface.eth0] with the rate of the link below it")
		}
	default:
		if tables(v) {
			r.unknownTable(n, name)
			return
		}
		r.unknown(n, name)
	}
}

// amount reads a bandwidth or percentage of b. A bad one makes what depends on it
// unknown.
func (r *reader) amount(n *node, key string, v any, b *hierarchy.BranchSpec, to *hierarchy.Amount) {
	text, ok := literal(v)
	if !ok {
		must, hint := "a bandwidth", fmt.Sprintf("write %s = \"10mbit\"", key)
		if key == "ingress" {
			must += " or a table"
			hint += " or ingress = { rate = \"10mbit\", ceil = \"20mbit\" }"
		}
		r.value(n, key, fmt.Sprintf("%s is %s, but must be %s", key, describe(v), must), hint)
		b.Broken = true
		return
	}
	parse := hierarchy.ParseAmount
	if n.level == levelInterface && key != "ceil" || n.level == levelIngress && key == "rate" {
		parse = hierarchy.ParseLine
	}
	a, err := parse(text)
	if err != nil {
		hint := ""
		if zero := strings.TrimSpace(text); number(zero) && !number(strings.TrimLeft(zero, "0.")) {
			switch {
			case key == "ceil":
				hint = "leave it out for no limit but the parent's"
			case n.level&inBranch != 0:
				hint = "leave it out for a share of what its siblings leave"
			case key == "ingress":
				hint = "leave it out to leave alone what is received"
			case n.level == levelIngress:
				hint = "write what the line brings"
			default:
				hint = "write what the line carries"
			}
		}
		r.value(n, key, key+" "+err.Error(), hint)
		b.Broken = true
		return
	}
	*to = a
}

// number says whether s begins with a digit.
func number(s string) bool { return s != "" && s[0] >= '0' && s[0] <= '9' }

func (r *reader) size(n *node, key string, v any, usual string, to *hierarchy.Size) {
	text, ok := literal(v)
	if !ok {
		r.value(n, key, fmt.Sprintf("%s is %s, but must be a size", key, describe(v)), fmt.Sprintf("write %s = %q", key, usual))
		return
	}
	s, err := hierarchy.ParseSize(text)
	if err != nil {
		r.value(n, key, key+" "+err.Error(), "")
		return
	}
	if s == 0 { // to the model 0 is what is not written
		why := "lets nothing through"
		if key == "mpu" {
			why = "is no minimum"
		}
		r.value(n, key, key+" is 0b, which "+why, fmt.Sprintf("leave it out for the default, or write for example %s = %q", key, usual))
		return
	}
	*to = s
}

func (r *reader) integer(n *node, key string, v any, low, high int64, hint string) (int64, bool) {
	i, ok := v.(int64)
	if s, quoted := v.(string); quoted {
		if i, err := strconv.ParseInt(s, 10, 64); err == nil {
			hint = fmt.Sprintf("write %s = %d, without quotes", key, i)
		}
	}
	switch {
	case !ok:
		r.value(n, key, fmt.Sprintf("%s is %s, but must be a whole number", key, describe(v)), hint)
	case i < low || i > high:
		r.value(n, key, fmt.Sprintf("%s %d is not between %d and %d", key, i, low, high), hint)
	default:
		return i, true
	}
	return 0, false
}

// qdisc reads a queueing discipline that is not a table.
func (r *reader) qdisc(n *node, v any) {
	s, ok := v.(string)
	switch {
	case !ok:
		r.value(n, "qdisc", fmt.Sprintf("qdisc is %s, but must be a kind or a table", describe(v)), `write qdisc = "fq_codel" or qdisc = { kind = "fq_codel", limit = 1024 }`)
	case s == "":
		r.value(n, "qdisc", "qdisc is empty", "leave it out for the default, or name a kind")
	default:
		n.branch.Qdisc = &hierarchy.RawQdisc{Kind: s}
	}
}

// param reads one value in the table of a queueing discipline.
func (r *reader) param(n *node, name string, v any) {
	q := n.branch.Qdisc
	if name == "kind" {
		s, ok := v.(string)
		switch {
		case !ok:
			r.value(n, "qdisc.kind", fmt.Sprintf("kind is %s, but must be a string", describe(v)), `write kind = "fq_codel"`)
		case s == "":
			r.value(n, "qdisc.kind", "kind is empty", `write kind = "fq_codel"`)
		}
		q.Kind = s
		return
	}
	text, ok := literal(v)
	if x, isBool := v.(bool); isBool {
		text, ok = strconv.FormatBool(x), true
	}
	if !ok {
		hint := ""
		if _, list := v.([]any); list {
			hint = fmt.Sprintf("where a parameter has several numbers they stand in one string: %s = \"1 2 3\"", name)
		}
		r.value(n, "qdisc."+name, fmt.Sprintf("%s is %s, but must be a single value", name, describe(v)), hint)
		n.bad = append(n.bad, name)
	}
	_, quoted := v.(string)
	q.Params = append(q.Params, hierarchy.RawParam{Name: name, Text: text, Quoted: quoted})
}

// boundByPolicy reads a binding. Pods have a key of their own, as a pod that may enter a branch
// need not be in it.
func boundByPolicy(s string) (bind.Binding, error) {
	b, err := hierarchy.ParseBinding(s)
	if err == nil && b.Kind == bind.Pod {
		return bind.Binding{}, fmt.Errorf("pods that a branch carries stand in a key of their own: write pods = [%q]", b.Name)
	}
	return b, err
}

// list reads a list of strings: what each of them means, and the places of these in
// the file's list, where some of it means nothing.
func list[T any](r *reader, n *node, key string, v any, one, example string, parse func(string) (T, error)) (all []T, at []int) {
	elements, ok := v.([]any)
	if s, isString := v.(string); isString {
		r.value(n, key, key+" is a string, but must be a list", fmt.Sprintf("write %s = [%q]", key, s))
		return nil, nil
	}
	if !ok {
		r.value(n, key, fmt.Sprintf("%s is %s, but must be a list of strings", key, describe(v)), fmt.Sprintf("write %s = [%q]", key, example))
		return nil, nil
	}
	for i, x := range elements {
		var msg string
		s, ok := x.(string)
		t, err := parse(s)
		switch {
		case !ok:
			msg = fmt.Sprintf("%s is %s, but must be a string such as %q", one, describe(x), example)
		case err != nil:
			msg = err.Error()
		case r.escaped(r.element(r.at, i)):
			r.add(mistake{off: r.element(r.at, i), path: n.path, key: key, value: true,
				msg:  fmt.Sprintf("in double quotes a backslash begins an escape: this is %q", s),
				hint: `put it in single quotes, as in 'unit:app-a\x2d1.scope', or write each backslash twice`})
			continue
		default:
			all, at = append(all, t), append(at, i)
			continue
		}
		r.add(mistake{off: r.element(r.at, i), path: n.path, key: key, value: true, msg: msg})
	}
	if len(at) == len(elements) {
		at = nil
	}
	return all, at
}

// escaped says whether the string at off has an escape such as \x2d that TOML takes
// for its own: systemd writes its names so.
func (r *reader) escaped(off int) bool {
	raw := r.index.value(off)
	return strings.HasPrefix(raw, `"`) && strings.Contains(strings.ReplaceAll(raw, `\\`, ""), `\x`)
}

// element is where element i of the list of an entry stands.
func (r *reader) element(entry, i int) int {
	if val := int(r.index.entries[entry].val); r.list != val {
		r.list, r.elements = val, r.index.elements(val)
	}
	if i < len(r.elements) {
		return r.elements[i]
	}
	return r.list
}

// problem reports what is wrong with the interface top as a whole.
func (r *reader) problem(top *node, p hierarchy.Problem) {
	m := mistake{path: p.Path, key: p.Key, msg: p.Text, hint: p.Hint, warning: p.Warning}
	n := top
	if rest := strings.TrimPrefix(string(p.Path), string(top.path)+"/"); p.Path != top.path {
		if n = top.find(rest); n == nil { // a rest that was added
			if n = top.find(string(hierarchy.Path(rest).Parent())); n == nil {
				n = top
			}
			m.off = r.place(n)
			r.add(m)
			return
		}
	}
	if below, ok := strings.CutPrefix(p.Key, "ingress"); ok {
		if kid := n.kids["ingress"]; kid != nil {
			n, p.Key = kid, strings.TrimPrefix(below, ".")
		} else {
			p.Key = "ingress"
		}
	}
	m.off = r.place(n)
	if name, ok := strings.CutPrefix(p.Key, "qdisc."); ok && n.kids["qdisc"] != nil && slices.Contains(n.kids["qdisc"].bad, name) {
		return
	}
	if key, ok := strings.CutPrefix(p.Key, "match"); ok {
		m.off, m.value = n.match[p.Index].of(strings.TrimPrefix(key, "."))
		r.add(m)
		return
	}
	if e, ok := r.entry(n, p.Key); ok {
		switch {
		case p.Index >= 0:
			if places := map[string][]int{"bind": n.bound, "delegate": n.given, "pods": n.pods}[p.Key]; places != nil {
				p.Index = places[p.Index]
			}
			m.off, m.value = r.element(e, p.Index), true
		case r.index.entries[e].val < 0 || r.noParam(n, p.Key):
			m.off, _ = r.index.part(e, len(r.keys[e])-1, len(r.keys[e]))
		default:
			m.off, m.value = int(r.index.entries[e].val), true
		}
	}
	r.add(m)
}

// noParam says whether key is a parameter that the kind of n's queueing
// discipline does not have.
func (r *reader) noParam(n *node, key string) bool {
	name, ok := strings.CutPrefix(key, "qdisc.")
	if !ok || n.branch.Qdisc == nil {
		return false
	}
	i := slices.IndexFunc(r.kinds, func(k hierarchy.Kind) bool { return k.Name == n.branch.Qdisc.Kind })
	return i >= 0 && r.kinds[i].Param(name) == nil
}

// find is the table whose path is that of n with rest behind it. Names that are
// refused may have slashes themselves.
func (n *node) find(rest string) *node {
	if kid := n.kids[rest]; kid != nil && kid.level == levelBranch {
		return kid
	}
	for i := range len(rest) {
		if rest[i] != '/' {
			continue
		}
		if kid := n.kids[rest[:i]]; kid != nil && kid.level == levelBranch {
			if found := kid.find(rest[i+1:]); found != nil {
				return found
			}
		}
	}
	return nil
}

// entry is where the given key of the table of n stands, if it is written.
func (r *reader) entry(n *node, key string) (int, bool) {
	if key == "" {
		return 0, false
	}
	if r.entries == nil {
		r.entries = make(map[string]int, len(r.keys))
		for i, k := range r.keys {
			id := strings.Join(k, "\x00")
			if _, ok := r.entries[id]; !ok {
				r.entries[id] = i
			}
		}
	}
	table := strings.Join(r.keys[n.entry][:n.depth], "\x00") + "\x00"
	if key == "qdisc" { // the kind says more than the table
		if e, ok := r.entries[table+"qdisc\x00kind"]; ok {
			return e, true
		}
	}
	sub, param, ok := strings.Cut(key, ".")
	if ok {
		sub += "\x00" + param
	}
	e, ok := r.entries[table+sub]
	return e, ok
}

// tables says whether v is a list with tables in it.
func tables(v any) bool {
	switch l := v.(type) {
	case []map[string]any:
		return true
	case []any:
		return slices.ContainsFunc(l, func(x any) bool { _, ok := x.(map[string]any); return ok })
	}
	return false
}

// literal is the text of a string or number.
func literal(v any) (string, bool) {
	switch x := v.(type) {
	case string:
		return x, true
	case int64:
		return strconv.FormatInt(x, 10), true
	case float64:
		if math.Abs(x) < 1e15 {
			return strconv.FormatFloat(x, 'f', -1, 64), true
		}
		return strconv.FormatFloat(x, 'g', -1, 64), true
	}
	return "", false
}

// describe is the type of a value in words.
func describe(v any) string {
	switch x := v.(type) {
	case string:
		return "a string"
	case int64:
		return "a whole number"
	case float64:
		return "a number with a fraction"
	case bool:
		return strconv.FormatBool(x)
	case time.Time:
		return "a date or time"
	case map[string]any:
		return "a table"
	case []map[string]any:
		return "a list of tables"
	}
	return "a list"
}

// quote is a string in quotes, and of anything else the type.
func quote(v any) string {
	if s, ok := v.(string); ok {
		return strconv.Quote(s)
	}
	return describe(v)
}
