package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// tableName is the name of our tables, one in each of two families:
//
//	table inet vifshape {                 # for nft only
//	    map if7-1-users  { typeof meta skuid : meta priority; ... }
//	    map if7-1-level2 { typeof socket cgroupv2 level 2 : meta priority; ... }
//	    chain if7 {
//	        type filter hook output priority 400
//	        meta oif != 7 accept
//	        meta priority set 71f:2
//	        meta priority set socket cgroupv2 level 2 map @if7-1-level2 accept   # deepest level first
//	        meta priority set meta skuid map @if7-1-users
//	    }
//	}
//	table netdev vifshape {
//	    chain if7 {
//	        type filter hook egress device eth0 priority 0
//	        meta priority 71f:0 meta priority set 71f:2
//	        meta rtclassid 0-0xffffffff accept      # whatever has a route: the chain above saw it
//	        meta priority set 71f:2
//	    }
//	}
//
// For net_cls+nft it is the second table alone: with 71f:2 for everything, and
// over that what "meta cgroup" says if it is a class of ours.
//
// The expression "socket" is for the hooks of IP only (nft_socket_validate,
// net/netfilter/nft_socket.c, v6.12), and of those, after the last choice of a
// route, for output alone. Packet sockets go past these hooks; at the hook of the
// device their packets are known by having no route.
//
// The number after the interface's is a generation: changes make new maps and
// change the rules over to them, see [place.write].
const tableName = "vifshape"

// outputPriority comes after whatever else looks at, changes or routes packets at
// the output hook (NF_IP_PRI_CONNTRACK_HELPER is 300).
const outputPriority nftables.ChainPriority = 400

// place is our part of the nf_tables of one interface.
type place struct {
	netNS int // descriptor; 0: the caller's
	iface string
	index uint32
}

// binding is what a cgroup is bound to. Level is its depth below the root.
type binding struct {
	class hierarchy.ClassID
	level uint32
}

// ruleset is what the tables say of one interface.
type ruleset struct {
	way     bind.Way // none: nothing
	version uint32   // 0: something of it is not as this package writes it
	cgroups map[uint64]binding
	users   map[uint32]hierarchy.ClassID
	changed bool // and not written
}

func newRuleset(w bind.Way) *ruleset {
	return &ruleset{way: w, version: way.Version, cgroups: map[uint64]binding{}, users: map[uint32]hierarchy.ClassID{}}
}

func (r *ruleset) current(w bind.Way) bool {
	return r != nil && r.way == w && r.version == way.Version
}

func (r *ruleset) get(k way.Key) (class hierarchy.ClassID, bound bool) {
	switch k.Kind {
	case bind.TargetCgroup:
		b, bound := r.cgroups[k.ID]
		return b.class, bound
	case bind.TargetUser:
		class, bound = r.users[uint32(k.ID)]
	}
	return class, bound
}

func (r *ruleset) put(k way.Key, class hierarchy.ClassID) error {
	const most = 255 // nft_socket_init, net/netfilter/nft_socket.c, v6.12
	switch next := (binding{class, k.Level}); {
	case k.Kind == bind.TargetUser:
		is, bound := r.users[uint32(k.ID)]
		r.changed = r.changed || !bound || is != class
		r.users[uint32(k.ID)] = class
	case k.Kind != bind.TargetCgroup:
		return way.ErrLinks
	case k.Level > most:
		return fmt.Errorf("%d levels below the root, more than %d", k.Level, most)
	default:
		is, bound := r.cgroups[k.ID]
		r.changed = r.changed || !bound || is != next
		r.cgroups[k.ID] = next
	}
	return nil
}

func (r *ruleset) remove(k way.Key) {
	r.changed = true
	switch k.Kind {
	case bind.TargetCgroup:
		delete(r.cgroups, k.ID)
	case bind.TargetUser:
		delete(r.users, uint32(k.ID))
	}
}

func (r *ruleset) each(fn func(way.Key, hierarchy.ClassID) error) error {
	for id, b := range r.cgroups {
		if err := fn(way.Key{Kind: bind.TargetCgroup, ID: id, Level: b.level}, b.class); err != nil {
			return err
		}
	}
	for uid, class := range r.users {
		if err := fn(way.Key{Kind: bind.TargetUser, ID: uint64(uid)}, class); err != nil {
			return err
		}
	}
	return nil
}

// levels are those at which a cgroup is bound, deepest first.
func (r *ruleset) levels() []uint32 {
	seen := map[uint32]bool{}
	for _, b := range r.cgroups {
		seen[b.level] = true
	}
	return slices.SortedFunc(maps.Keys(seen), func(a, b uint32) int { return int(b) - int(a) })
}

// ruleLayout is what the rules of a chain depend on.
type ruleLayout struct {
	way        bind.Way
	generation uint32
	levels     []uint32
	users      bool
}

func (n place) chain() string { return fmt.Sprintf("if%d", n.index) }

func (n place) levelSet(generation, level uint32) string {
	return fmt.Sprintf("if%d-%d-level%d", n.index, generation, level)
}

func (n place) userSet(generation uint32) string {
	return fmt.Sprintf("if%d-%d-users", n.index, generation)
}

func number(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// Registers of a rule: one of 16 bytes, and one more.
const reg1, reg2 = 1, 2

func setPriority(register uint32) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: register}
}

func toRest() []expr.Any {
	return []expr.Any{&expr.Immediate{Register: reg1, Data: number(uint32(way.Rest))}, setPriority(reg1)}
}

// rules are those of both chains, by the family of their table; none for one that
// the way does not have.
func (n place) rules(l ruleLayout) (output, egress [][]expr.Any) {
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	switch l.way {
	case bind.WayNft:
		output = [][]expr.Any{
			{
				&expr.Meta{Key: expr.MetaKeyOIF, Register: reg1},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: number(n.index)},
				accept,
			},
			toRest(),
		}
		for _, level := range l.levels {
			output = append(output, []expr.Any{
				&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: level, Register: reg1},
				&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: n.levelSet(l.generation, level)},
				setPriority(reg1),
				accept,
			})
		}
		if l.users {
			output = append(output, []expr.Any{
				&expr.Meta{Key: expr.MetaKeySKUID, Register: reg1},
				&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: n.userSet(l.generation)},
				setPriority(reg1),
			})
		}
		egress = [][]expr.Any{
			append([]expr.Any{
				&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: number(uint32(hierarchy.ID(0)))},
			}, toRest()...),
			// reading it ends the rule for a packet that has no route (nft_meta_get_eval,
			// net/netfilter/nft_meta.c, v6.12)
			{&expr.Meta{Key: expr.MetaKeyRTCLASSID, Register: reg1}, accept},
			toRest(),
		}
	case bind.WayNetClsNft:
		egress = [][]expr.Any{
			toRest(),
			{
				&expr.Meta{Key: expr.MetaKeyCGROUP, Register: reg1},
				&expr.Bitwise{SourceRegister: reg1, DestRegister: reg2, Len: 4, Mask: number(0xffff << 16), Xor: number(0)},
				&expr.Cmp{Op: expr.CmpOpEq, Register: reg2, Data: number(uint32(hierarchy.ID(0)))},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: number(uint32(hierarchy.ID(0)))},
				setPriority(reg1),
			},
		}
	}
	return output, egress
}

// base is the chain in one of the two families.
func (n place) base(f nftables.TableFamily, name string) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	c := &nftables.Chain{Name: name, Table: &nftables.Table{Name: tableName, Family: f}, Type: nftables.ChainTypeFilter, Policy: &policy}
	if f == nftables.TableFamilyINet {
		c.Hooknum, c.Priority = nftables.ChainHookOutput, nftables.ChainPriorityRef(outputPriority)
	} else {
		c.Hooknum, c.Priority, c.Device = nftables.ChainHookEgress, nftables.ChainPriorityFilter, n.iface
	}
	return c
}

// conn is the library's, for writing: it does not decode all that we write.
func (n place) conn() (*nftables.Conn, error) {
	// a batch goes to the kernel in one piece
	const most = 16 << 20
	return nftables.New(nftables.WithNetNSFd(n.netNS), nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetWriteBuffer(most) }))
}

// write brings the rules of the interface to what next says, or takes them away
// when its way is none. There is no packet that sees neither the old rules nor the
// new ones.
//
// A chain's rules change at once. Elements of a map do not: a packet that is being
// looked up while they change may find neither the old one nor the new one (commit
// b2f742c846ca, Linux 6.17, mends that). So the maps in use never change: new ones
// come with the new rules, and the old ones go when nobody can be in them any more.
func (n place) write(next *ruleset) error {
	on, err := n.look()
	if err != nil || next.way == bind.WayNone && len(on.indexes) == 0 {
		return err
	}
	l := ruleLayout{way: next.way, generation: on.generation + 1, levels: next.levels(), users: len(next.users) > 0}
	c, err := n.conn()
	if err != nil {
		return n.fail(err)
	}
	for _, f := range on.asleep { // wakes it
		c.AddTable(&nftables.Table{Name: tableName, Family: f})
	}
	if err := c.Flush(); err != nil {
		return n.fail(err)
	}
	batches := [][]nftables.TableFamily{bothFamilies}
	if next.way == bind.WayNft && on.output != chainOurs {
		// Between the hooks is a packet that the first one let go without a class, and
		// the second one would take for one that has got its class.
		batches = [][]nftables.TableFamily{{nftables.TableFamilyINet}, {nftables.TableFamilyNetdev}}
	}
	for _, families := range batches {
		if err := n.stage(c, n.chain(), l, next, on, families); err != nil {
			return err
		}
		if err := c.Flush(); err != nil {
			return n.fail(err)
		}
		if next.way != bind.WayNone {
			if err := way.WaitForReaders(); err != nil {
				return err
			}
		}
	}
	return n.tidy(c, on)
}

var bothFamilies = []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyNetdev}

// stage puts into the batch what leads from what is there to the layout, in the tables
// of some families.
func (n place) stage(c *nftables.Conn, chain string, l ruleLayout, next *ruleset, on looked, families []nftables.TableFamily) error {
	output, egress := n.rules(l)
	for _, x := range []struct {
		family nftables.TableFamily
		rules  [][]expr.Any
		on     chainState
	}{{nftables.TableFamilyINet, output, on.output}, {nftables.TableFamilyNetdev, egress, on.egress}} {
		if !slices.Contains(families, x.family) {
			continue
		}
		base := n.base(x.family, chain)
		if x.rules != nil && !slices.Contains(on.asleep, x.family) { // a batch that wakes a table may add no chain
			c.AddTable(base.Table)
		}
		if x.on != chainNone {
			c.FlushChain(base)
		}
		if x.on == chainOther || x.on == chainOurs && x.rules == nil {
			c.DelChain(base)
		}
		if x.rules == nil {
			continue
		}
		if x.on != chainOurs {
			c.AddChain(base)
		}
		if x.family == nftables.TableFamilyINet {
			if err := n.stageSets(c, base.Table, l, next); err != nil {
				return err
			}
		}
		for _, r := range x.rules {
			c.AddRule(&nftables.Rule{Table: base.Table, Chain: base, Exprs: r})
		}
	}
	return nil
}

func (n place) stageSets(c *nftables.Conn, t *nftables.Table, l ruleLayout, next *ruleset) error {
	add := func(name string, key nftables.SetDatatype, elements []nftables.SetElement) error {
		s := &nftables.Set{
			Table: t, Name: name, IsMap: true, KeyType: key, DataType: nftables.TypeClassID,
			KeyByteOrder: binaryutil.NativeEndian, Size: uint32(len(elements)),
		}
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
		const most = 1024 // an attribute holds 64 KiB at most
		for some := range slices.Chunk(elements, most) {
			if err := c.SetAddElements(s, some); err != nil {
				return err
			}
		}
		return nil
	}
	of := map[uint32][]nftables.SetElement{}
	for id, b := range next.cgroups {
		of[b.level] = append(of[b.level], nftables.SetElement{Key: binary.NativeEndian.AppendUint64(nil, id), Val: number(uint32(b.class))})
	}
	for _, level := range l.levels {
		if err := add(n.levelSet(l.generation, level), nftables.TypeCGroupV2, of[level]); err != nil {
			return err
		}
	}
	if !l.users {
		return nil
	}
	var users []nftables.SetElement
	for uid, class := range next.users {
		users = append(users, nftables.SetElement{Key: number(uid), Val: number(uint32(class))})
	}
	return add(n.userSet(l.generation), nftables.TypeUID, users)
}

// tidy removes maps that are not in use any more, what was left of interfaces that
// are gone, and tables in which nothing is.
func (n place) tidy(c *nftables.Conn, before looked) error {
	inet := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	netdev := &nftables.Table{Name: tableName, Family: nftables.TableFamilyNetdev}
	gone, err := n.gone(before.indexes)
	if err != nil {
		return err
	}
	for f, names := range before.chains {
		for _, name := range names {
			if index, ok := owner(name); ok && gone[index] {
				chain := &nftables.Chain{Name: name, Table: &nftables.Table{Name: tableName, Family: f}}
				c.FlushChain(chain)
				c.DelChain(chain)
			}
		}
	}
	for _, name := range before.sets {
		if index, ok := owner(name); ok && (index == n.index || gone[index]) {
			c.DelSet(&nftables.Set{Table: inet, Name: name})
		}
	}
	if err := c.Flush(); err != nil {
		return n.fail(err)
	}
	for _, t := range []*nftables.Table{inet, netdev} {
		now, err := c.ListTableOfFamily(t.Name, t.Family)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return n.fail(err)
		}
		if now.Use == 0 {
			c.DelTable(t)
		}
	}
	return n.fail(c.Flush())
}

// owner reads the number of the interface from the name of a chain or a map.
func owner(name string) (index uint32, ok bool) {
	rest, _, _ := strings.Cut(name, "-")
	_, err := fmt.Sscanf(rest, "if%d", &index)
	return index, err == nil && rest == fmt.Sprintf("if%d", index)
}

// gone says which of some interfaces are not there any more.
func (n place) gone(indexes []uint32) (gone map[uint32]bool, err error) {
	find := func() error {
		all, err := net.Interfaces()
		if err != nil {
			return err
		}
		gone = map[uint32]bool{}
		for _, i := range indexes {
			gone[i] = !slices.ContainsFunc(all, func(f net.Interface) bool { return f.Index == int(i) })
		}
		return nil
	}
	if !slices.ContainsFunc(indexes, func(i uint32) bool { return i != n.index }) {
		return nil, nil
	}
	if n.netNS == 0 {
		err = find()
	} else {
		err = cgroupfs.InNetNS(n.netNS, find)
	}
	return gone, err
}

// try finds out whether the kernel takes the rules of a way. It changes nothing:
// the batch ends with what cannot be done, and then nothing of it is.
func (n place) try(w bind.Way) error {
	c, err := n.conn()
	if err != nil {
		return n.lacks(err)
	}
	// A kernel without nf_tables answers a batch once (nfnetlink_rcv_batch,
	// net/netfilter/nfnetlink.c, v6.1), and the others would be waited for.
	if _, err := c.ListTablesOfFamily(nftables.TableFamilyNetdev); err != nil {
		return n.lacks(err)
	}
	on, err := n.look()
	if err != nil {
		return err
	}
	const name = "probe"
	r := newRuleset(w)
	if w == bind.WayNft {
		r.cgroups[1], r.users[0] = binding{way.Rest, 1}, way.Rest
	}
	l := ruleLayout{way: w, levels: r.levels(), users: len(r.users) > 0}
	if err := n.stage(c, name, l, r, looked{asleep: on.asleep}, bothFamilies); err != nil {
		return err
	}
	c.DelChain(&nftables.Chain{Name: name + "-no", Table: n.base(nftables.TableFamilyNetdev, "").Table})
	err = c.Flush()
	var all interface{ Unwrap() []error }
	if errors.As(err, &all) {
		if errs := all.Unwrap(); len(errs) > 1 || !errors.Is(err, unix.ENOENT) {
			err = errs[0]
		} else {
			err = nil
		}
	}
	return n.lacks(err)
}

// lacks says of a refused rule that the kernel does not have it.
func (n place) lacks(err error) error {
	if err == nil {
		return nil
	}
	if err := caps.Explain(err, unix.CAP_NET_ADMIN); errors.Is(err, caps.ErrNotPrivileged) {
		return n.fail(err)
	}
	return fmt.Errorf("nf_tables with its egress hook, \"socket cgroupv2\" and \"meta cgroup\" (Linux 5.16): %w: %w", caps.ErrNotSupported, caps.Errno(err))
}

func (n place) fail(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("nf_tables: %w", caps.Explain(err, unix.CAP_NET_ADMIN))
}
