package trial

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/confine"
	"github.com/vifshape/vifshape/cgroup/escape"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// selftestPolicy is what the attempts are made against: to get out of mine.
const selftestPolicy = `version = 1

[interface.eth0]
rate = "1gbit"
%s
[interface.eth0.mine]
rate = "100mbit"
ceil = "200mbit"

[interface.eth0.other]
rate = "100mbit"
ceil = "200mbit"
`

// selftestReceives is what there is of it for what is received, where that can be shaped.
const selftestReceives = "ingress = \"1gbit\"\n"

// selftestLure is a branch whose matches fit all that an attempt can choose of its packets,
// each by itself: who is bound is not to get there. It is for the binding that has matches.
const selftestLure = `
[interface.eth0.lure]
rate = "100mbit"
ceil = "200mbit"
match = [
  { host = [%[1]s] },
  { from = [%[1]s, %[2]s, "0.0.0.0/0", "::/0"] },
  { to = [%[1]s, %[2]s, "0.0.0.0/0", "::/0"] },
  { from = [%[1]s, %[2]s], to = [%[1]s, %[2]s], proto = "udp", port = "1-65535" },
  { port = "1-65535" },
  { sport = [4000, 5002], dport = [5001, 5002] },
  { dport = [5001, 5002] },
  { sport = [4000, 5002] },
  { proto = ["tcp", "udp", "udplite", "icmp", "icmpv6", "igmp", "sctp", "dccp", 253, 254] },
  { dscp = ["EF", "CS0", "AF41", 63] },
  { mark = ["0x0/0x1", "0x1/0x1"] },
  { vlan = 7 },
  { mac = [%[3]s] },
]
`

const (
	selftestLured   hierarchy.Path = "eth0/lure"
	selftestMine    hierarchy.Path = "eth0/mine"
	selftestOther   hierarchy.Path = "eth0/other"
	selftestRest    hierarchy.Path = "eth0/rest"
	selftestPort                   = 5001
	selftestAnswers                = 5002
	selftestFlows                  = 20_000 // the first of the ports that attempts receive at
	// an attempt takes milliseconds, or tenths of seconds on an emulated processor
	selftestPatience = time.Minute
)

// EscapeResult is what came of one attempt in one case.
type EscapeResult struct {
	Attempt   string              `json:"attempt"`
	Direction hierarchy.Direction `json:"direction"`
	escape.Case
	escape.Result
	Outcome escape.Outcome `json:"outcome"`
	Counts  escape.Counts  `json:"packets"`
}

// Escapes are the results for one way of binding.
type Escapes struct {
	Binding string   `json:"binding"`
	Way     bind.Way `json:"way,omitempty"`
	Lacks   string   `json:"lacks,omitempty"` // why the way, or a level with it, was not tried
	// Sends says why nothing was tried of what is received.
	Sends   string         `json:"lacks_receiving,omitempty"`
	Results []EscapeResult `json:"results,omitempty"`
}

// Bad is how many attempts got out that should not have, or proved nothing.
func (x *Escapes) Bad() (n int) {
	for _, r := range x.Results {
		if r.Verdict.Bad() {
			n++
		}
	}
	return n
}

// In are the results of what goes in a direction.
func (x *Escapes) In(d hierarchy.Direction) (all []EscapeResult) {
	for _, r := range x.Results {
		if r.Direction == d {
			all = append(all, r)
		}
	}
	return all
}

// ByCase has results by attempt and case, and the cases in their order.
func ByCase(results []EscapeResult) (cases []escape.Case, of map[string]map[escape.Case]EscapeResult) {
	of = map[string]map[escape.Case]EscapeResult{}
	for _, r := range results {
		if !slices.Contains(cases, r.Case) {
			cases = append(cases, r.Case)
		}
		if of[r.Attempt] == nil {
			of[r.Attempt] = map[escape.Case]EscapeResult{}
		}
		of[r.Attempt][r.Case] = r
	}
	return cases, of
}

// Reasons are those of what is open and impossible, each once.
func Reasons(results []EscapeResult) []string {
	why := map[string]bool{}
	for _, r := range results {
		if a := escape.Find(r.Attempt); r.Verdict == escape.Open || r.Verdict == escape.Impossible {
			why[string(r.Verdict)+": "+a.Hole(r.Case).Why] = true
		}
	}
	return slices.Sorted(maps.Keys(why))
}

// Sum is how many there are of each verdict, in words.
func Sum(results []EscapeResult) string {
	counted := map[escape.Verdict]int{}
	for _, r := range results {
		counted[r.Verdict]++
	}
	var sum []string
	for _, v := range escape.Verdicts {
		if n := counted[v]; n > 0 {
			sum = append(sum, fmt.Sprintf("%d %s", n, v))
		}
	}
	return fmt.Sprintf("%d attempts: %s", len(results), strings.Join(sum, ", "))
}

// trial is a network with a branch to get out of.
type trial struct {
	o        EscapeOptions
	binding  string
	pair     *lab.Pair
	sink     *lab.Sink
	taps     [2]tap // of what is sent, at the far end, and of what is received
	sends    string // why nothing is received through a tree, empty: it is
	blind    bool   // see [escape.Case]
	lures    bool   // there is a branch whose matches fit everything
	far      *escape.Far
	flows    uint16 // how many ports were taken
	conn     *rtnl.Conn
	open     *os.File // a socket from outside of the branch
	file     string
	way      bind.Way
	class    map[hierarchy.Path]hierarchy.ClassID
	place    escape.Place
	outsider map[escape.User]*outsider
	dirs     []string // of both branches, to kill what is left
	store    *record.Store
	stored   map[string]string // what is in the run directory
	planned  []hierarchy.Plan  // before anything was tried: nothing to do, as a rule
	spoilt   bool
}

// tap is a packet socket that counts what comes to an interface.
type tap struct {
	file    *os.File
	arrived uint64
}

// outsider is a process in the other branch.
type outsider struct {
	*exec.Cmd
	in io.Closer
	escape.Served
}

// EscapeOptions are which attempts are made.
type EscapeOptions struct {
	RunDir      string
	Self        string   // this program
	Level, User string   // one alone; empty: all
	Only        []string // attempts by name; none: all
}

// EscapeBy makes all attempts for one binding, "bpf", "nft" or "net_cls", in network
// namespaces of its own. It takes root.
func EscapeBy(ctx context.Context, binding string, o EscapeOptions) (found *Escapes, err error) {
	found = &Escapes{Binding: binding}
	if found.Lacks = LacksWay(binding); found.Lacks != "" {
		return found, nil
	}
	t, err := newTrial(ctx, binding, o)
	defer func() { err = errors.Join(err, t.close()) }()
	if err != nil {
		return nil, err
	}
	found.Way, found.Sends = t.way, t.sends
	free := map[string]*escape.Outcome{} // as root at level tag
	for _, level := range []escape.Level{escape.Tag, escape.Lock} {
		if o.Level != "" && o.Level != string(level) {
			continue
		}
		if why, err := t.lacksLevel(ctx, level); err != nil || why != "" {
			found.Lacks = why
			if err != nil {
				return nil, err
			}
			continue
		}
		for _, a := range escape.Attempts() {
			if len(o.Only) > 0 && !slices.Contains(o.Only, a.Name) || a.Direction() == hierarchy.Receive && t.sends != "" {
				continue
			}
			for _, user := range []escape.User{escape.Root, escape.Nobody} {
				if o.User != "" && o.User != string(user) {
					continue
				}
				c := escape.Case{Way: t.way, Level: level, User: user, Blind: t.blind}
				r, err := t.attempt(ctx, &a, c, free)
				if err != nil {
					return nil, fmt.Errorf("attempt %s (%v): %w", a.Name, c, err)
				}
				found.Results = append(found.Results, r)
			}
		}
	}
	return found, nil
}

// LacksWay says why a binding cannot be had on this machine.
func LacksWay(binding string) string {
	want := shaper.Ways(binding)
	why := ""
	for _, w := range cgroup.Probe().Ways {
		if !slices.Contains(want, w.Way) {
			continue
		}
		if w.Err == nil {
			return ""
		}
		if why == "" {
			why = w.Err.Error()
		}
	}
	return why
}

// newTrial makes the network. It returns what there is also with an error, to be
// closed.
func newTrial(ctx context.Context, binding string, o EscapeOptions) (*trial, error) {
	t := &trial{o: o, binding: binding, outsider: map[escape.User]*outsider{}}
	return t, t.make(ctx)
}

func (t *trial) make(ctx context.Context) (err error) {
	if t.pair, err = lab.NewPair(lab.PairConfig{}); err != nil {
		return err
	}
	if t.sink, err = lab.NewSink(context.WithoutCancel(ctx), t.pair.Far, selftestPort); err != nil {
		return err
	}
	if t.far, err = escape.NewFar(t.pair, selftestAnswers); err != nil {
		return err
	}
	for d, end := range []*lab.NetNS{hierarchy.Send: t.pair.Far, hierarchy.Receive: t.pair.Near} {
		if err := end.Do(func() error { return t.listen(hierarchy.Direction(d)) }); err != nil {
			return err
		}
	}
	if err := t.pair.Near.Do(func() error { return t.apply(ctx) }); err != nil {
		return err
	}
	if t.conn, err = rtnl.Open(rtnl.Config{NetNS: t.pair.Near.FD()}); err != nil {
		return err
	}
	for _, user := range []escape.User{escape.Root, escape.Nobody} {
		if err := t.serve(ctx, user); err != nil {
			return fmt.Errorf("start a process in %s: %w", selftestOther, err)
		}
	}
	if err := t.find(); err != nil {
		return err
	}
	if err := t.lure(ctx); err != nil {
		return err
	}
	// the branch has a cgroup from the first program on
	if _, _, err := t.perform(ctx, "udp", escape.Tag, escape.Root); err != nil {
		return err
	}
	if t.stored, err = t.keeps(); err != nil {
		return err
	}
	t.planned, err = t.plan(ctx)
	return err
}

// listen counts what arrives where packets of a direction go, whatever it is. What is
// received comes to it before it comes to any program.
func (t *trial) listen(d hierarchy.Direction) error {
	dev := t.pair.FarDev
	if d == hierarchy.Receive {
		dev = t.pair.Dev
	}
	i, err := net.InterfaceByName(dev)
	if err != nil {
		return err
	}
	if d == hierarchy.Send {
		t.place.FarMAC = i.HardwareAddr
	}
	const all = 0x0300 // ETH_P_ALL as the network has it
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket AF_PACKET", err)
	}
	t.taps[d].file = os.NewFile(uintptr(fd), "packets")
	err = errors.Join(
		// Nothing is read: what does not fit is counted, too.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}))
	return os.NewSyscallError("count what arrives", err)
}

// apply is vifshape apply, and finds out what attempts need to know. It is called
// inside the near namespace.
func (t *trial) apply(ctx context.Context) error {
	s, err := record.Open(t.o.RunDir)
	if err != nil {
		return err
	}
	t.store = s
	t.file = filepath.Join(s.Dir, "selftest.toml")
	receives := selftestReceives
	if t.sends, err = lacksReceiving(); err != nil {
		return err
	}
	if t.sends != "" {
		receives = ""
	}
	policy := fmt.Sprintf(selftestPolicy, receives)
	if t.lures = t.binding == string(bind.WayBPF); t.lures {
		if policy, err = t.tempting(policy); err != nil {
			return err
		}
	}
	if err := errors.Join(record.MakeDir(s.Dir), os.WriteFile(t.file, []byte(policy), 0o644)); err != nil {
		return err
	}
	if err := bring(ctx, t.o.RunDir, t.file, t.binding, func(shaper.Remark) {}, nil); err != nil {
		return err
	}
	// users may ping, as on most machines
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err != nil {
		return err
	}
	r, err := s.Load(t.pair.Dev)
	if err != nil {
		return err
	}
	t.way, t.class = r.Way, map[hierarchy.Path]hierarchy.ClassID{}
	for _, p := range []hierarchy.Path{selftestMine, selftestOther, selftestLured, selftestRest} {
		if t.class[p], _, _ = r.IDs.Find(p); p == selftestRest {
			t.class[p] = hierarchy.ID(hierarchy.RestMinor)
		}
	}
	i, err := net.InterfaceByName(t.pair.Dev)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	t.open = os.NewFile(uintptr(fd), "socket")
	t.place = escape.Place{
		Self: []string{t.o.Self, "selftest", "attempt"},
		Dev:  t.pair.Dev, Index: i.Index, NearMAC: i.HardwareAddr, FarMAC: t.place.FarMAC,
		Near4: t.pair.Near4, Far4: t.pair.Far4, Near6: t.pair.Near6, Far6: t.pair.Far6, Port: selftestPort,
		Own: t.class[selftestMine], Other: t.class[selftestOther], Root: hierarchy.ID(0),
		Record: s.File(t.pair.Dev), Lock: s.LockFile(),
		Far: t.far.Name, Answers: selftestAnswers,
	}
	if t.sends == "" {
		t.place.IFB = link.IFBName(t.pair.Dev, 0)
		r, err := bpf.Receives(t.way)
		if t.blind = !r.Looks; err != nil {
			return err
		}
	}
	return nil
}

// tempting is a policy with a branch whose matches fit everything.
func (t *trial) tempting(policy string) (string, error) {
	i, err := net.InterfaceByName(t.pair.Dev)
	if err != nil {
		return "", err
	}
	list := func(all ...fmt.Stringer) string {
		var texts []string
		for _, x := range all {
			if a, ok := x.(netip.Addr); !ok || a.IsValid() {
				texts = append(texts, strconv.Quote(x.String()))
			}
		}
		return strings.Join(texts, ", ")
	}
	return policy + fmt.Sprintf(selftestLure, list(t.pair.Near4, t.pair.Near6), list(t.pair.Far4, t.pair.Far6), list(i.HardwareAddr, net.HardwareAddr(t.place.FarMAC))), nil
}

// lure holds that what nobody is bound to send goes where it matches: else nothing would be
// tried of that.
func (t *trial) lure(ctx context.Context) error {
	if !t.lures {
		return nil
	}
	before, _, err := t.read("")
	if err != nil {
		return err
	}
	sent, err := t.far.Unbound()
	if err != nil {
		return err
	}
	after, err := t.counts(ctx, "", before.Sum()+uint64(sent))
	if n := after.Matched - before.Matched; err == nil && n < uint64(sent) {
		err = fmt.Errorf("%d of %d packets of nobody's got to %s, which matches them all", n, sent, selftestLured)
	}
	return err
}

// lacksReceiving says why a tree for what is received cannot be had here.
func lacksReceiving() (string, error) {
	c, err := rtnl.Open(rtnl.Config{})
	if err != nil {
		return "", err
	}
	defer c.Close()
	has, err := link.HasIFB(c)
	if err != nil {
		return "", err
	}
	if !has {
		return "the kernel has no interfaces of kind ifb", nil
	}
	if err := bpf.TryReceive(); err != nil {
		return err.Error(), nil
	}
	return "", nil
}

// program is this program, started by vifshape run in a branch.
func (t *trial) program(ctx context.Context, path hierarchy.Path, level escape.Level, user escape.User, args ...string) *exec.Cmd {
	argv := []string{"run", "--level", string(level)}
	if user == escape.Nobody {
		argv = append(argv, "--user", "65534:65534")
	}
	c := exec.CommandContext(ctx, t.o.Self, append(append(argv, string(path), "--", t.o.Self, "selftest"), args...)...)
	c.Args[0] = "vifshape"
	c.WaitDelay = time.Second // for children that hold the output
	return c
}

// serve starts the process in the other branch.
func (t *trial) serve(ctx context.Context, user escape.User) error {
	b, err := json.Marshal(t.place)
	if err != nil {
		return err
	}
	o := &outsider{Cmd: t.program(context.WithoutCancel(ctx), selftestOther, escape.Tag, user, "outsider", string(b))}
	var stderr strings.Builder
	o.Stderr = &stderr
	in, err := o.StdinPipe()
	if err != nil {
		return err
	}
	out, err := o.StdoutPipe()
	if err != nil {
		return err
	}
	o.in = in
	if err := t.pair.Near.Start(o.Cmd); err != nil {
		return err
	}
	t.outsider[user] = o
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("it ended: %s", strings.TrimSpace(stderr.String()))
	}
	return json.Unmarshal(line, &o.Served)
}

// find finds the cgroups of the branches, where their hierarchy is mounted, and the
// classifier.
func (t *trial) find() error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", t.outsider[escape.Root].Served.PID))
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || !strings.HasSuffix(f[2], string(selftestOther)) {
			continue
		}
		at := slices.IndexFunc(mounts, func(m *mountinfo.Info) bool {
			if f[1] == "" {
				return m.FSType == "cgroup2" && m.Root == "/"
			}
			return m.FSType == "cgroup" && m.Root == "/" && slices.Contains(strings.Split(m.VFSOptions, ","), strings.Split(f[1], ",")[0])
		})
		if at < 0 {
			continue
		}
		other := filepath.Join(mounts[at].Mountpoint, f[2])
		own := filepath.Join(strings.TrimSuffix(other, string(selftestOther)), string(selftestMine))
		t.place.OtherDirs = append(t.place.OtherDirs, other)
		t.place.OwnDirs = append(t.place.OwnDirs, own)
		// Some kernels have no numbers for the files of cgroup v1.
		if h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Join(other, "cgroup.procs"), 0); err == nil {
			t.place.Handles = append(t.place.Handles, escape.Handle{Mount: mounts[at].Mountpoint, Type: h.Type(), Bytes: h.Bytes()})
		}
	}
	t.dirs = append(slices.Clone(t.place.OwnDirs), t.place.OtherDirs...)
	d, err := tc.Find(t.conn, t.pair.Dev)
	if err != nil {
		return err
	}
	if t.place.Program, err = hook.Of(d.Interface).EgressProgram(); err != nil {
		return err
	}
	if t.place.Match, err = hook.Of(d.Interface).MatchProgram(); err != nil {
		return err
	}
	t.place.Note, _, err = hook.Of(d.Interface).ReceivePrograms()
	return err
}

// lacksLevel says why a level cannot be had here, for an honest program. That it
// fails otherwise is an error: what is promised was not tried.
func (t *trial) lacksLevel(ctx context.Context, level escape.Level) (string, error) {
	_, stderr, err := t.perform(ctx, "udp", level, escape.Root)
	_, why, lacks := strings.Cut(stderr, "vifshape: error: "+(&confine.LockError{}).Error())
	if err == nil || !lacks {
		return "", err
	}
	why, _, _ = strings.Cut(why, "\n")
	return why, nil
}

// perform makes an attempt and waits until all that it sent has left the queue.
func (t *trial) perform(ctx context.Context, name string, level escape.Level, user escape.User) (*escape.Outcome, string, error) {
	p := t.place
	p.Outsider = t.outsider[user].Served
	t.flows++
	p.Flow = selftestFlows + t.flows
	b, err := json.Marshal(p)
	if err != nil {
		return nil, "", err
	}
	var stdin *os.File
	var undo func()
	if err := t.pair.Near.Do(func() (err error) {
		stdin, undo, err = escape.Find(name).Ready(&p)
		return err
	}); err != nil {
		return nil, "", err
	}
	defer func() { _ = t.pair.Near.Do(func() error { undo(); return nil }) }() // nothing else fails
	if stdin == nil {
		stdin = t.open
	} else {
		defer stdin.Close()
	}
	limit, cancel := context.WithTimeout(ctx, selftestPatience)
	defer cancel()
	c := t.program(limit, selftestMine, level, user, "attempt", name, string(b))
	var out, errs strings.Builder
	c.Stdin, c.Stdout, c.Stderr = stdin, &out, &errs
	c.ExtraFiles = []*os.File{t.open}
	err = t.pair.Near.Start(c)
	if err == nil {
		err = c.Wait()
	}
	if ctx.Err() != nil {
		return nil, "", ctx.Err()
	}
	stderr := strings.TrimSpace(errs.String())
	if why, ok := strings.CutPrefix(stderr, "vifshape: error: standard input "); ok && err != nil && out.Len() == 0 {
		why, _, _ = strings.Cut(why, "\n")
		return &escape.Outcome{Call: "run", Err: "run: standard input " + why}, stderr, nil
	}
	if err != nil {
		return nil, stderr, fmt.Errorf("%w: %s", err, stderr)
	}
	o := &escape.Outcome{}
	if err := json.Unmarshal([]byte(out.String()), o); err != nil {
		return nil, stderr, fmt.Errorf("%w in %q, %s", err, out.String(), stderr)
	}
	return o, stderr, nil
}

// attempt makes one attempt in one case and judges it.
func (t *trial) attempt(ctx context.Context, a *escape.Attempt, c escape.Case, free map[string]*escape.Outcome) (r EscapeResult, err error) {
	if t.spoilt {
		if err := t.renew(ctx); err != nil {
			return r, err
		}
	}
	before, _, err := t.read(a.Whose) // what stood still after the last attempt
	if err != nil {
		return r, err
	}
	o, _, err := t.perform(ctx, a.Name, c.Level, c.User)
	if err != nil {
		return r, err
	}
	due := uint64(0)
	if a.Whose != "" && o.Err == "" {
		due = before.Sum() + uint64(o.Sent)
	}
	after, err := t.counts(ctx, a.Whose, due)
	if err != nil {
		return r, err
	}
	less := func(a, b uint64) uint64 { return a - min(a, b) }
	n := escape.Counts{
		Own: less(after.Own, before.Own), Rest: less(after.Rest, before.Rest),
		Matched: less(after.Matched, before.Matched), Others: less(after.Others, before.Others), Arrived: after.Arrived - before.Arrived,
	}
	changed, err := t.changed(ctx)
	if err != nil {
		return r, err
	}
	r = EscapeResult{Attempt: a.Name, Direction: a.Direction(), Case: c, Outcome: *o, Counts: n}
	t.spoilt = t.spoilt || changed != "" || a.Spoils && o.Err == ""
	if c.Level == escape.Tag && c.User == escape.Root {
		free[a.Name] = o
	} else if free[a.Name] == nil && o.Unclear() {
		if t.spoilt {
			if err := t.renew(ctx); err != nil {
				return r, err
			}
		}
		if free[a.Name], _, err = t.perform(ctx, a.Name, escape.Tag, escape.Root); err != nil {
			return r, err
		}
		t.spoilt = t.spoilt || a.Spoils
	}
	r.Result = escape.Judge(a, c, o, free[a.Name], n, changed)
	return r, nil
}

// counts reads all counters of what is sent, or of what somebody receives, as soon as they
// stand still. So many packets are due: they may still be on their way.
func (t *trial) counts(ctx context.Context, whose escape.Whose, due uint64) (escape.Counts, error) {
	var last escape.Counts
	for still, end := 0, time.Now().Add(5*time.Second); still < 2 && time.Now().Before(end); {
		now, waiting, err := t.read(whose)
		if err != nil {
			return now, err
		}
		if still++; waiting || now != last || now.Sum() < due {
			still = 0
		}
		last = now
		select {
		case <-ctx.Done():
			return now, ctx.Err()
		case <-time.After(3 * time.Millisecond):
		}
	}
	return last, nil
}

// read reads them once. A tree that is gone counts nothing.
func (t *trial) read(whose escape.Whose) (n escape.Counts, waiting bool, err error) {
	d, dev := hierarchy.Send, t.pair.Dev
	if whose != "" {
		d, dev = hierarchy.Receive, t.place.IFB
	}
	tap := &t.taps[d]
	s, err := unix.GetsockoptTpacketStats(int(tap.file.Fd()), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return n, false, os.NewSyscallError("getsockopt PACKET_STATISTICS", err)
	}
	tap.arrived += uint64(s.Packets)
	n.Arrived = tap.arrived
	device, err := tc.Find(t.conn, dev)
	if d == hierarchy.Receive && errors.As(err, new(*link.NotFoundError)) {
		return n, false, nil
	}
	if err != nil {
		return n, false, err
	}
	stats, err := device.Stats()
	if err != nil {
		return n, false, err
	}
	own := map[escape.Whose]hierarchy.Path{"": selftestMine, escape.Its: selftestMine, escape.Theirs: selftestOther, escape.Nobodys: selftestRest}[whose]
	if whose == escape.Nobodys && t.lures {
		own = selftestLured
	}
	for _, s := range stats {
		waiting = waiting || s.QLen > 0
		switch s.Class {
		case t.class[own]:
			n.Own = s.Packets
		case t.class[selftestRest]:
			n.Rest = s.Packets
		case t.class[selftestLured]:
			n.Matched = s.Packets
		case t.class[selftestMine], t.class[selftestOther]:
			n.Others += s.Packets
		}
	}
	return n, waiting, nil
}

// changed says what of the tree, or of what vifshape keeps, is not as it was applied.
func (t *trial) changed(ctx context.Context) (string, error) {
	stored, err := t.keeps()
	if err != nil {
		return "", err
	}
	for name, what := range stored {
		if what != t.stored[name] {
			// it may be one that nobody comes to the end of
			return "the run directory was changed: " + name, record.UnlessGone(os.Remove(filepath.Join(t.store.Dir, name)))
		}
	}
	if len(stored) < len(t.stored) {
		return "the run directory was changed", nil
	}
	f, err := t.store.TryLock(t.store.LockFile(), "selftest")
	if err != nil {
		return "", err
	}
	if f == nil {
		return "the lock of all writers is held", nil
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	now, err := t.plan(ctx)
	if errors.As(err, new(*shaper.ForeignRootError)) {
		return "the tree was replaced", nil
	}
	if err != nil || reflect.DeepEqual(now, t.planned) {
		return "", err
	}
	return "the tree was changed: " + steps(now), nil
}

// keeps is what is in the run directory, by name.
func (t *trial) keeps() (map[string]string, error) {
	ents, err := os.ReadDir(t.store.Dir)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, e := range ents {
		if !e.Type().IsRegular() {
			all[e.Name()] = e.Type().String()
			continue
		}
		b, err := os.ReadFile(filepath.Join(t.store.Dir, e.Name()))
		if err != nil {
			return nil, err
		}
		all[e.Name()] = e.Type().String() + string(b)
	}
	return all, nil
}

// plan is what would have to be done.
func (t *trial) plan(ctx context.Context) (plans []hierarchy.Plan, err error) {
	err = t.pair.Near.Do(func() error {
		m, err := shaper.Open(t.o.RunDir, func(shaper.Remark) {})
		if err != nil {
			return err
		}
		defer m.Close()
		c, err := m.Plan(ctx, shaper.Read(t.file), shaper.Scope{Binding: t.binding})
		if err != nil {
			return err
		}
		defer c.Close()
		plans = c.Plans()
		return nil
	})
	return plans, err
}

// steps are those of plans, in one line.
func steps(plans []hierarchy.Plan) string {
	var all []string
	for _, p := range plans {
		for _, s := range p.Steps {
			all = append(all, s.String())
		}
	}
	return strings.Join(all, ", ")
}

// renew makes the network anew.
func (t *trial) renew(ctx context.Context) error {
	if err := t.close(); err != nil {
		return err
	}
	*t = trial{o: t.o, binding: t.binding, outsider: map[escape.User]*outsider{}}
	return t.make(ctx)
}

// close removes everything.
func (t *trial) close() error {
	var errs []error
	for _, o := range t.outsider {
		o.in.Close()
		_ = o.Wait() // how it ends does not matter
	}
	errs = append(errs, t.kill())
	if t.open != nil {
		errs = append(errs, t.open.Close())
	}
	for _, tap := range t.taps {
		if tap.file != nil {
			errs = append(errs, tap.file.Close())
		}
	}
	if t.far != nil {
		errs = append(errs, t.far.Close())
	}
	if t.conn != nil {
		errs = append(errs, t.conn.Close())
	}
	if t.sink != nil {
		errs = append(errs, t.sink.Close())
	}
	if t.pair != nil {
		if t.pair.Near != nil {
			errs = append(errs, vacate(t.o.RunDir, t.pair.Near))
		}
		errs = append(errs, t.pair.Close())
	}
	return errors.Join(errs...)
}

// kill ends what is left in the branches, and waits until it has gone.
func (t *trial) kill() error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		left := 0
		for _, d := range t.dirs {
			b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
					left++
					_ = unix.Kill(pid, unix.SIGKILL) // it may have gone
				}
			}
		}
		if left == 0 || time.Now().After(end) {
			return nil
		}
	}
}
