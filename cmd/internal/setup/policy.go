//go:build linux

package setup

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/policy"
)

// Purpose is what a machine is for.
type Purpose string

// The purposes.
const (
	Home    Purpose = "home"    // calls, what is interactive, bulk, guests
	Server  Purpose = "server"  // SSH first, services, backup capped
	Tenants Purpose = "tenants" // a branch for each user and container
	Build   Purpose = "build"   // jobs capped, caches, logins first
	Router  Purpose = "router"  // calls, the networks behind each interface
)

// Purposes are all, in the order of the help.
var Purposes = []Purpose{Home, Server, Tenants, Build, Router}

// texts say what a policy is for.
var texts = map[Purpose]string{
	Home:    "a line at home or in an office",
	Server:  "a server",
	Tenants: "a machine of several tenants",
	Build:   "a build server",
	Router:  "a router",
}

// Guess is what a machine seems to be for, and by what that is told.
func (s *Survey) Guess() (p Purpose, why string) {
	switch {
	case s.Forwards && len(s.LANs) > 0:
		return Router, "it forwards packets, and there are networks behind " + s.LANs[0].Name
	case len(s.Containers) > 0:
		return Tenants, "containers run: " + s.Containers[0].Bind.Name
	case len(s.Users) > 1:
		return Tenants, "several users have many processes: " + s.Users[0].Bind.Name + ", " + s.Users[1].Bind.Name
	case len(s.Listeners) > 0:
		return Server, s.Listeners[0].Bind.String() + " " + s.Listeners[0].Text
	}
	return Home, "nothing says otherwise"
}

// Policy is the text of a policy for the machine; why says why for that purpose, empty where
// that was asked for. m is nil where nothing was measured. It passes check, whichever of its
// lines that are comments are put in force.
func (s *Survey) Policy(p Purpose, why string, m *Measurement) string {
	if why == "" {
		why = "as asked for"
	} else {
		why = "guessed, for " + why
	}
	head := []string{
		fmt.Sprintf("A policy for this machine as %s, by \"vifshape init --for %s\" (%s).", texts[p], p, why),
		`Lines that begin with # and no space are not in force, and ready to be: take the # away. They are for what was found here, or examples, as they say.`,
		`Then: vifshape check FILE, vifshape plan FILE, and vifshape apply --confirm 60s FILE.`,
	}
	for _, g := range s.Gaps {
		head = append(head, "Not looked at: "+g)
	}
	var specs []*hierarchy.Spec
	notes := []policy.Note{{Text: strings.Join(head, "\n")}}
	for i := range s.Uplinks {
		w := &writer{survey: s, uplink: &s.Uplinks[i], notes: &notes, spec: &hierarchy.Spec{Interface: s.Uplinks[i].Name}}
		w.found = slices.Concat(s.Listeners, s.Containers, s.Users)
		w.write(p, m)
		specs = append(specs, w.spec)
	}
	return policy.Format("", specs, notes)
}

// writer makes the tree of one interface.
type writer struct {
	survey *Survey
	uplink *Uplink
	spec   *hierarchy.Spec
	notes  *[]policy.Note
	found  []Found // that have no line yet
}

// node is a branch that is in force.
type node struct {
	path hierarchy.Path
	spec *hierarchy.BranchSpec
	used []string // names of the lines that are not
}

func (w *writer) write(p Purpose, m *Measurement) {
	top := &node{path: hierarchy.Path(w.spec.Interface), spec: &w.spec.BranchSpec}
	w.line(top, m)
	switch p {
	case Home:
		w.home(top)
	case Server:
		w.server(top)
	case Build:
		w.build(top)
	case Router:
		w.router(top)
	default:
		w.tenants(top)
	}
}

func (w *writer) note(n *node, key, format string, args ...any) {
	*w.notes = append(*w.notes, policy.Note{Path: n.path, Key: key, Text: fmt.Sprintf(format, args...)})
}

// below is a comment below the keys of a branch, off a line of it that is not in force.
func (w *writer) below(n *node, text string) {
	*w.notes = append(*w.notes, policy.Note{Path: n.path, Below: true, Text: text})
}

func (w *writer) off(n *node, line, text string) {
	*w.notes = append(*w.notes, policy.Note{Path: n.path, Below: true, Off: line, Text: text})
}

// guess is what a line is taken to carry whose speed nobody knows.
const guess = 100 * hierarchy.Mbit

// ethernet is the part of its speed, in percent, that Ethernet carries as vifshape counts:
// preamble, checksum and gap take some 2 % beside full packets, and a little less than the
// line keeps the queue here.
const ethernet = 94

// line says what the interface carries.
func (w *writer) line(top *node, m *Measurement) {
	u := w.uplink
	families := "IPv4"
	switch {
	case u.IPv4 && u.IPv6:
		families = "IPv4 and IPv6"
	case u.IPv6:
		families = "IPv6"
	}
	w.note(top, "", "The default route of %s leads to %s: %s.", families, u.Name, u.What)
	if u.Bridge {
		w.note(top, "", "It is a bridge: what it passes on between its ports comes by no tree here. Shape the port that leads out instead, where that is to be shaped too.")
	}
	const measure = "vifshape init --measure HOST"
	up, down, of := guess, guess, "write a little less than the line brings"
	switch {
	case m != nil && m.Interface == u.Name:
		up, down = less(m.Up), less(m.Down)
		of = "it was not measured, write a little less than the line brings"
		w.note(top, "rate", "%s was measured to %s by %s in %v. That is %d %% less, so that the queue is here, where it has an order, and not in the modem or at the provider.",
			words.Short(m.Up), m.Host, m.By, m.Time, 100-measured)
	case u.Speed != 0:
		up = u.Speed / 100 * ethernet
		down = up
		w.note(top, "rate", "The %s of %s, and a little less, so that the queue is here, where it has an order, and not in the card or behind it. Where the line to the provider is slower, write what that carries, and a little less; `%s` measures it.",
			words.Short(u.Speed), u.Name, measure)
	default:
		w.note(top, "rate", "A guess, for nobody knows how fast %s is: write what its line carries, and a little less, so that the queue is here, where it has an order, and not in the modem or at the provider. `%s` measures it.",
			u.Name, measure)
	}
	if up == 0 {
		up = guess
	}
	top.spec.Rate = hierarchy.Absolute(up)
	if u.Root.Ours() {
		w.note(top, "", "It is shaped by vifshape already: `vifshape show %s` names the policy.", words.Quoted(u.Name))
	} else if u.Root.Foreign() {
		w.spec.Replace = true
		w.note(top, "replace", "takes the place of %s %v, which somebody has made: `vifshape import %s` makes a policy of that", u.Root.Kind, u.Root.Handle, words.Quoted(u.Name))
	}
	text := "What it receives, of which each branch gets an equal part unless it says how much: " + of
	if m != nil && m.Interface == u.Name && m.Down != 0 {
		text = fmt.Sprintf("What it receives: %s was measured, that is %d %% less; each branch gets an equal part unless it says how much", words.Short(m.Down), 100-measured)
	}
	if down == 0 {
		down = up
	}
	w.off(top, fmt.Sprintf("ingress = %q", down), text)
}

// percent is an amount that is right.
func percent(n int) hierarchy.Amount {
	a, _ := hierarchy.ParseAmount(fmt.Sprintf("%d%%", n))
	return a
}

// branch adds a branch that is in force. Ceil and prio are left open by 0 and by -1.
func (w *writer) branch(to *node, name, text string, rate, ceil, prio int) *node {
	b := &hierarchy.BranchSpec{Name: name, Rate: percent(rate), Ceil: percent(ceil)}
	if prio >= 0 {
		p := uint8(prio)
		b.Prio = &p
	}
	to.spec.Children = append(to.spec.Children, b)
	to.used = append(to.used, name)
	n := &node{path: to.path.Join(name), spec: b}
	w.note(n, "", "%s", text)
	return n
}

// fits is a match of keys with values.
func fits(keys map[string][]string) (m match.Match) {
	for key, values := range keys {
		for _, v := range values {
			_ = m.Add(key, v) // they are right: each policy that is written is tried by a test
		}
	}
	return m
}

// everything is all addresses. They say nothing, but are a key more, and of two matches that
// fit a packet that wins which has more.
var everything = []string{"0.0.0.0/0", "::/0"}

// match gives a branch its matches, as a comment where the kernel has none.
func (w *writer) match(n *node, no error, all ...match.Match) {
	if no == nil {
		no = w.survey.NoMatch
	}
	if no == nil {
		n.spec.Match = append(n.spec.Match, all...)
		return
	}
	texts := make([]string, len(all))
	for i, m := range all {
		texts[i] = m.Text()
	}
	w.off(n, "match = ["+strings.Join(texts, ", ")+"]", "not in force: "+no.Error())
}

// calls are few bits that must not wait.
func (w *writer) calls(top *node, rate, ceil int) *node {
	n := w.branch(top, "calls", "Calls and meetings, by their marks and ports: few bits that must not wait. Served first, and no more than they need.", rate, ceil, 0)
	w.match(n, nil,
		fits(map[string][]string{"dscp": {"EF", "CS5"}, "from": everything, "to": everything}),
		fits(map[string][]string{"proto": {"udp"}, "port": {"3478", "8801-8810", "19302-19309"}, "from": everything, "to": everything}))
	return n
}

// What names of programs say.
var (
	callWords  = []string{"asterisk", "freeswitch", "kamailio", "mumble", "murmur", "coturn", "jitsi", "jicofo", "janus", "teamspeak"}
	bulkWords  = []string{"backup", "restic", "borg", "rsync", "rclone", "duplicity", "bacula", "bareos", "syncthing", "nextcloud", "torrent", "transmission", "deluge", "mirror"}
	ciWords    = []string{"runner", "jenkins", "buildkite", "teamcity", "drone", "woodpecker", "buildbot", "concourse", "agent", "ci-", "-ci", "build"}
	cacheWords = []string{"cache", "squid", "nexus", "artifactory", "registry", "varnish", "proxy", "athens", "bazel-remote", "mirror"}
)

// take takes out of what was found that which pick wants.
func (w *writer) take(pick func(Found) bool) (taken []Found) {
	w.found = slices.DeleteFunc(w.found, func(f Found) bool {
		is := pick(f)
		if is {
			taken = append(taken, f)
		}
		return is
	})
	return taken
}

// called says whether something has one of some words in its name.
func called(all []string) func(Found) bool {
	return func(f Found) bool {
		name := strings.ToLower(f.Bind.Name)
		return slices.ContainsFunc(all, func(word string) bool { return strings.Contains(name, word) })
	}
}

func ofKind(k ...bind.Kind) func(Found) bool {
	return func(f Found) bool { return slices.Contains(k, f.Bind.Kind) }
}

// mostOffers is how many lines of one sort a branch gets.
const mostOffers = 30

// offer writes lines for what was found, each a branch below n. Ceil is how much each may
// get in percent, 0 for all.
func (w *writer) offer(n *node, head string, ceil int, all []Found) {
	if len(all) == 0 {
		return
	}
	if more := len(all) - mostOffers; more > 0 {
		head += fmt.Sprintf(" %d more were found.", more)
		all = all[:mostOffers]
	}
	w.below(n, head)
	for _, f := range all {
		b := &hierarchy.BranchSpec{Name: n.name(f.Bind), Bind: []bind.Binding{f.Bind}}
		if ceil != 0 {
			b.Ceil = percent(ceil)
		}
		w.off(n, policy.Inline(b), f.Text)
	}
}

// name is the name of a branch for what is bound, that no other has.
func (n *node) name(b bind.Binding) string {
	name := b.Name[strings.LastIndexByte(b.Name, '/')+1:]
	for _, end := range []string{".service", ".slice"} {
		name = strings.TrimSuffix(name, end)
	}
	name = strings.TrimLeft(strings.Map(func(r rune) rune {
		switch {
		case r == '_' || r == '-' || r == '@' || r == '+' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z':
			return r
		}
		return '-'
	}, name), "-@+")
	const longest = 60 // and room for a number
	name = strings.TrimRight(name[:min(len(name), longest)], "-")
	if hierarchy.CheckName(name) != nil || strings.Trim(name, "0123456789") == "" { // eth0/1000 looks like a VLAN
		name = strings.TrimRight(b.Kind.String()+"-"+name, "-")
	}
	free := name
	for i := 2; free == hierarchy.RestName || slices.ContainsFunc(n.used, func(o string) bool { return strings.EqualFold(o, free) }); i++ {
		free = fmt.Sprintf("%s-%d", name, i)
	}
	n.used = append(n.used, free)
	return free
}

// serves offers what was found for a branch, and where nothing was an example.
func (w *writer) serves(n *node, unit string, all []Found) {
	w.offer(n, "Found here:", 0, all)
	if len(all) == 0 {
		w.example(n, unit)
	}
}

// example shows how a branch is bound that nothing was found for: its name does not say it.
func (w *writer) example(n *node, unit string) {
	for _, line := range policy.Keys(&hierarchy.BranchSpec{Bind: []bind.Binding{{Kind: bind.Unit, Name: unit}}}) {
		w.off(n, line, "an example: nothing of the kind was found here")
	}
}

// others offers what has no better place.
func (w *writer) others(top *node) {
	w.offer(top, "Services that listen here. Each gets an equal part of what the branches below leave, and more where that is free.", 0, w.take(ofKind(bind.Unit, bind.Cgroup)))
	w.offer(top, "Containers that run.", 0, w.take(ofKind(bind.Container)))
	w.offer(top, "Users with many processes.", 0, w.take(ofKind(bind.User)))
}

func (w *writer) home(top *node) {
	calls := w.calls(top, 10, 30)
	w.offer(calls, "Found here:", 0, w.take(called(callWords)))
	quick := w.branch(top, "interactive", "What somebody waits for, and is little: logins, names, time.", 10, 0, 1)
	w.logins(quick, fits(map[string][]string{"proto": {"udp"}, "port": {"53", "123"}}))
	bulk := w.branch(top, "bulk", "Backup, synchronisation, downloads: what nobody else wants. It never starves.", 5, 0, 7)
	w.match(bulk, nil, fits(map[string][]string{"dscp": {"CS1", "LE"}}))
	w.serves(bulk, "restic.service", w.take(called(bulkWords)))
	w.others(top)
	w.guests(top)
	w.branch(top, hierarchy.RestName, "Everything else.", 30, 0, -1)
}

// guests offers a branch for a network of guests: the last that is behind another interface,
// else one as an example.
func (w *writer) guests(n *node) {
	b := &hierarchy.BranchSpec{Name: n.name(bind.Binding{Name: "guests"}), Ceil: percent(30)}
	m, text := fits(map[string][]string{"host": {"192.168.2.0/24"}}), "an example of a network"
	if len(w.survey.LANs) > 0 {
		x := w.survey.LANs[len(w.survey.LANs)-1]
		m, text = match.Match{Host: x.Prefixes[:1]}, "the network behind "+x.Name
	}
	b.Match = []match.Match{m}
	w.below(n, "Guests, whose packets this machine forwards.")
	w.off(n, policy.Inline(b), text)
}

// logins gives a branch what is SSH's, besides others: by its ports, or where the kernel has no
// matches by who serves it.
func (w *writer) logins(n *node, others ...match.Match) {
	var ports []string
	for _, p := range w.survey.SSH {
		ports = append(ports, fmt.Sprint(p))
	}
	if len(ports) == 0 { // none was found, or it could not be looked for
		ports = []string{"22"}
	}
	w.match(n, nil, append([]match.Match{fits(map[string][]string{"proto": {"tcp"}, "port": ports})}, others...)...)
	if w.survey.NoMatch != nil {
		w.offer(n, "Found here:", 0, w.survey.Logins)
	}
}

func (w *writer) server(top *node) {
	n := w.branch(top, "ssh", "Logins come first, or nobody can help a machine that is busy. Large copies by SSH are held by ceil.", 5, 20, 0)
	w.logins(n)
	n = w.branch(top, "backup", "Backup takes what nobody else wants, and never more than ceil.", 5, 30, 7)
	w.serves(n, "restic.service", w.take(called(bulkWords)))
	w.others(top)
	w.branch(top, hierarchy.RestName, "Everything else: name service, time, updates, and what has no branch yet.", 20, 0, -1)
}

func (w *writer) tenants(top *node) {
	const ceil = 80
	if len(w.found) == 0 {
		alice := Found{bind.Binding{Kind: bind.User, Name: "alice"}, "an example: nobody was found here"}
		w.offer(top, "A tenant gets what its rate says, else an equal part of what the branches below leave, and may borrow up to ceil.", ceil, []Found{alice})
	}
	w.offer(top, "Users with many processes. Each gets an equal part of what the branches below leave, and may borrow up to ceil.", ceil, w.take(ofKind(bind.User)))
	w.offer(top, "Containers that run, likewise.", ceil, w.take(ofKind(bind.Container)))
	w.offer(top, "Services that listen here, likewise.", ceil, w.take(ofKind(bind.Unit, bind.Cgroup)))
	w.branch(top, hierarchy.RestName, "The machine itself: monitoring, storage, logins. Few bits, and wanted most when all else is full.", 10, 0, 0)
}

func (w *writer) build(top *node) {
	n := w.branch(top, "ci", "Jobs fetch and push as much as they get: they have the line at night, and never all of it.", 40, 80, 5)
	jobs := w.take(func(f Found) bool { return called(ciWords)(f) && !called(cacheWords)(f) })
	w.offer(n, "Found here:", 0, jobs)
	containers := w.take(func(f Found) bool { return ofKind(bind.Container)(f) && !called(cacheWords)(f) })
	w.offer(n, "Containers that run, as jobs do:", 0, containers)
	if len(jobs)+len(containers) == 0 {
		w.example(n, "gitlab-runner.service")
	}
	n = w.branch(top, "cache", "Caches and registries, which serve the jobs of other machines.", 15, 60, -1)
	w.serves(n, "docker-registry.service", w.take(called(cacheWords)))
	n = w.branch(top, "people", "Who works here comes before jobs: logins.", 15, 0, 1)
	w.logins(n)
	w.offer(n, "All who are logged in, by what systemd starts for them:", 0, []Found{{bind.Binding{Kind: bind.Slice, Name: "user.slice"}, "a user that is bound for himself is not among them"}})
	w.others(top)
	w.branch(top, hierarchy.RestName, "Everything else.", 10, 0, -1)
}

func (w *writer) router(top *node) {
	n := w.branch(top, "calls", "Calls and meetings, whoever has them, by their marks and ports: few bits that must not wait. Served first, and no more than they need.", 10, 20, 0)
	w.match(n, nil,
		fits(map[string][]string{"dscp": {"EF", "CS5"}, "to": everything}),
		fits(map[string][]string{"proto": {"udp"}, "port": {"3478", "8801-8810", "19302-19309"}, "to": everything}))
	w.offer(n, "Found here:", 0, w.take(called(callWords)))
	n = w.branch(top, "lan", "All the rest that comes by, for whom it is. Each may take what the others leave.", 70, 0, -1)
	w.match(n, nil, fits(map[string][]string{"to": everything}))
	seen := map[string]bool{}
	for _, x := range w.survey.LANs {
		name := n.name(bind.Binding{Kind: bind.Link, Name: x.Name})
		b := &hierarchy.BranchSpec{Name: name}
		n.spec.Children = append(n.spec.Children, b)
		behind := &node{path: n.path.Join(name), spec: b}
		w.note(behind, "", "The networks behind %s.", x.Name)
		m := match.Match{}
		for _, p := range x.Prefixes {
			if !seen[p.String()] { // two branches cannot both have it
				seen[p.String()] = true
				m.Host = append(m.Host, p)
			}
		}
		if len(m.Host) > 0 {
			w.match(behind, w.survey.NoHost, m)
		}
		if in := (bind.Binding{Kind: bind.Link, Name: x.Name}); exact(in) {
			for _, line := range policy.Keys(&hierarchy.BranchSpec{Bind: []bind.Binding{in}}) {
				w.off(behind, line, "all that comes in by it, whatever its address")
			}
		}
	}
	if len(w.survey.LANs) == 0 { // there is nothing else to tell machines apart by
		w.guests(n)
	}
	w.others(top)
	w.branch(top, hierarchy.RestName, "What is neither IPv4 nor IPv6, and what this machine itself does not match.", 10, 0, -1)
}
