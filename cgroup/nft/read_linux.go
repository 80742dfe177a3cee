package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/iface"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// The library's readers leave out expressions that they do not know, such as
// "socket", and fail at sets of types that they do not know. These do neither.

// chainState is what is known of a chain of ours.
type chainState int

const (
	chainNone  chainState = iota
	chainOurs             // at the hook where it should be
	chainOther            // at another, or asleep
)

// looked is what is there before a change.
type looked struct {
	output, egress chainState
	chains         map[nftables.TableFamily][]string // of all interfaces
	sets           []string                          // of all interfaces
	indexes        []uint32                          // whose these are
	generation     uint32                            // the highest of this interface
	asleep         []nftables.TableFamily            // where no packet comes to the chains
}

// reader asks the kernel about our tables.
type reader struct {
	c *netlink.Conn
	n place
}

func (n place) reader() (*reader, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: n.netNS})
	if err != nil {
		return nil, n.fail(err)
	}
	return &reader{c, n}, nil
}

// noNetfilter says of an error that the kernel has nothing to ask.
func noNetfilter(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT)
}

// get asks about something in a table of ours and calls fn for each answer. What is
// not there gives none, and so does a kernel without nf_tables.
func (r *reader) get(what int, f nftables.TableFamily, all bool, attrs func(*netlink.AttributeEncoder), fn func(*netlink.AttributeDecoder) error) error {
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.NFTA_TABLE_NAME, tableName) // the same number in all kinds of messages
	if attrs != nil {
		attrs(ae)
	}
	b, err := ae.Encode()
	if err != nil {
		return err
	}
	m := netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | what), Flags: netlink.Request},
		Data:   append([]byte{byte(f), unix.NFNETLINK_V0, 0, 0}, b...),
	}
	if all {
		m.Header.Flags |= netlink.Dump
	}
	answers, err := iface.Whole(func() ([]netlink.Message, error) { return r.c.Execute(m) })
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL), // EINVAL: no such subsystem (nfnetlink_rcv_msg)
		errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		return nil
	case err != nil:
		return r.n.fail(err)
	}
	for _, a := range answers {
		if len(a.Data) < 4 || a.Data[0] != byte(f) {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(a.Data[4:])
		if err != nil {
			return err
		}
		ad.ByteOrder = binary.BigEndian
		if err := fn(ad); err != nil {
			return err
		}
		if err := ad.Err(); err != nil {
			return err
		}
	}
	return nil
}

// dormant says that somebody has put the table of a family to sleep: its chains then
// show their hooks, and no packet comes to them.
func (r *reader) dormant(f nftables.TableFamily) (is bool, err error) {
	err = r.get(unix.NFT_MSG_GETTABLE, f, false, nil, func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			if ad.Type() == unix.NFTA_TABLE_FLAGS {
				is = ad.Uint32()&unix.NFT_TABLE_F_DORMANT != 0
			}
		}
		return nil
	})
	return is, err
}

// generation is a number that is another after every change of nf_tables.
func (r *reader) generation() (id uint32, err error) {
	err = r.get(unix.NFT_MSG_GETGEN, nftables.TableFamilyUnspecified, false, nil, func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				id = ad.Uint32()
			}
		}
		return nil
	})
	return id, err
}

// whole does something that asks several times, and does it again when there was a
// change meanwhile: a list that is read while it changes may lack what is there.
func (r *reader) whole(read func() error) error {
	const tries = 20
	for range tries {
		before, err := r.generation()
		if err != nil {
			return err
		}
		if err := read(); err != nil {
			return err
		}
		if after, err := r.generation(); err != nil || after == before {
			return err
		}
	}
	return errors.New("nf_tables: another program changes them all the time: try again")
}

// chains lists those in the table of a family, with what they hang on.
func (r *reader) chains(f nftables.TableFamily, fn func(name string, s chainState)) error {
	dormant, err := r.dormant(f)
	if err != nil {
		return err
	}
	return r.get(unix.NFT_MSG_GETCHAIN, f, true, nil, func(ad *netlink.AttributeDecoder) error {
		table, name := "", ""
		is := nftables.Chain{Table: &nftables.Table{Name: tableName, Family: f}}
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_CHAIN_TABLE:
				table = ad.String()
			case unix.NFTA_CHAIN_NAME:
				name = ad.String()
			case unix.NFTA_CHAIN_TYPE:
				is.Type = nftables.ChainType(ad.String())
			case unix.NFTA_CHAIN_POLICY:
				p := nftables.ChainPolicy(ad.Uint32())
				is.Policy = &p
			case unix.NFTA_CHAIN_HOOK:
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						switch ad.Type() {
						case unix.NFTA_HOOK_HOOKNUM:
							is.Hooknum = nftables.ChainHookRef(nftables.ChainHook(ad.Uint32()))
						case unix.NFTA_HOOK_PRIORITY:
							is.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(int32(ad.Uint32())))
						case unix.NFTA_HOOK_DEV:
							is.Device = ad.String()
						}
					}
					return nil
				})
			}
		}
		if ad.Err() != nil || table != tableName { // the kernel lists the chains of all tables
			return ad.Err()
		}
		s := chainOther
		if want := r.n.base(f, name); !dormant && is.Hooknum != nil && is.Priority != nil && is.Policy != nil &&
			*is.Hooknum == *want.Hooknum && *is.Priority == *want.Priority && *is.Policy == *want.Policy &&
			is.Type == want.Type && is.Device == want.Device {
			s = chainOurs
		}
		fn(name, s)
		return nil
	})
}

// sets lists the names of those in the table of a family.
func (r *reader) sets(fn func(name string)) error {
	return r.get(unix.NFT_MSG_GETSET, nftables.TableFamilyINet, true, nil, func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			if ad.Type() == unix.NFTA_SET_NAME {
				fn(ad.String())
			}
		}
		return nil
	})
}

// look finds what is there.
func (n place) look() (l looked, err error) {
	r, err := n.reader()
	if noNetfilter(err) {
		return l, nil
	}
	if err != nil {
		return l, err
	}
	defer r.c.Close()
	err = r.whole(func() error {
		l, err = r.look()
		return err
	})
	return l, err
}

func (r *reader) look() (l looked, err error) {
	n := r.n
	l.chains = map[nftables.TableFamily][]string{}
	see := func(name string) {
		if index, ok := owner(name); ok && !slices.Contains(l.indexes, index) {
			l.indexes = append(l.indexes, index)
		}
	}
	for f, state := range map[nftables.TableFamily]*chainState{nftables.TableFamilyINet: &l.output, nftables.TableFamilyNetdev: &l.egress} {
		asleep, err := r.dormant(f)
		if err != nil {
			return l, err
		}
		if asleep {
			l.asleep = append(l.asleep, f)
		}
		err = r.chains(f, func(name string, s chainState) {
			see(name)
			l.chains[f] = append(l.chains[f], name)
			if name == n.chain() {
				*state = s
			}
		})
		if err != nil {
			return l, err
		}
	}
	err = r.sets(func(name string) {
		see(name)
		l.sets = append(l.sets, name)
		if generation, _, ok := n.parseSet(name); ok {
			l.generation = max(l.generation, generation)
		}
	})
	return l, err
}

// parseSet reads the name of a map of this interface. Level 0 is the map of users.
func (n place) parseSet(name string) (generation, level uint32, ok bool) {
	var index uint32
	if _, err := fmt.Sscanf(name, "if%d-%d-", &index, &generation); err != nil || index != n.index {
		return 0, 0, false
	}
	if name == n.userSet(generation) {
		return generation, 0, true
	}
	_, err := fmt.Sscanf(name, fmt.Sprintf("if%d-%d-level%%d", index, generation), &level)
	return generation, level, err == nil && level > 0 && name == n.levelSet(generation, level)
}

// read is what the tables say of the interface.
func (n place) read() (*ruleset, error) {
	if n.index == 0 {
		return newRuleset(bind.WayNone), nil
	}
	r, err := n.reader()
	if noNetfilter(err) {
		return newRuleset(bind.WayNone), nil
	}
	if err != nil {
		return nil, err
	}
	defer r.c.Close()
	var s *ruleset
	err = r.whole(func() error {
		s, err = r.read()
		return err
	})
	return s, err
}

func (r *reader) read() (*ruleset, error) {
	n := r.n
	state := map[nftables.TableFamily]chainState{}
	rules := map[nftables.TableFamily][][]byte{}
	var l ruleLayout
	for _, f := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyNetdev} {
		if err := r.chains(f, func(name string, s chainState) {
			if name == n.chain() {
				state[f] = s
			}
		}); err != nil {
			return nil, err
		}
		if state[f] == chainNone {
			continue
		}
		err := r.rules(f, func(text []byte, sets []string) {
			rules[f] = append(rules[f], text)
			for _, name := range sets {
				if generation, level, ok := n.parseSet(name); ok {
					l.generation = generation
					l.users = l.users || level == 0
					if level > 0 {
						l.levels = append(l.levels, level)
					}
				}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	out, in := state[nftables.TableFamilyINet], state[nftables.TableFamilyNetdev]
	switch {
	case out == chainNone && in == chainNone:
		return newRuleset(bind.WayNone), nil
	case out == chainNone:
		l.way = bind.WayNetClsNft
	default:
		l.way = bind.WayNft
	}
	s := newRuleset(l.way)
	output, egress := n.rules(l)
	if !r.same(rules[nftables.TableFamilyINet], output) || !r.same(rules[nftables.TableFamilyNetdev], egress) ||
		in != chainOurs || out == chainOther || l.way == bind.WayNft && out != chainOurs ||
		!slices.IsSortedFunc(l.levels, func(a, b uint32) int { return int(b) - int(a) }) {
		s.version = 0
		return s, nil
	}
	return s, r.elements(l, s)
}

// elements reads the maps that the rules of a layout use.
func (r *reader) elements(l ruleLayout, s *ruleset) error {
	for _, level := range l.levels {
		err := r.set(r.n.levelSet(l.generation, level), 8, func(key []byte, class hierarchy.ClassID) {
			s.cgroups[binary.NativeEndian.Uint64(key)] = binding{class, level}
		})
		if err != nil {
			return err
		}
	}
	if !l.users {
		return nil
	}
	return r.set(r.n.userSet(l.generation), 4, func(key []byte, class hierarchy.ClassID) {
		s.users[binary.NativeEndian.Uint32(key)] = class
	})
}

func (r *reader) set(name string, key int, fn func(key []byte, class hierarchy.ClassID)) error {
	return r.get(unix.NFT_MSG_GETSETELEM, nftables.TableFamilyINet, true, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_SET_ELEM_LIST_SET, name)
	}, func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			if ad.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					var k, v []byte
					ad.Nested(func(ad *netlink.AttributeDecoder) error {
						for ad.Next() {
							switch ad.Type() {
							case unix.NFTA_SET_ELEM_KEY:
								ad.Nested(value(&k))
							case unix.NFTA_SET_ELEM_DATA:
								ad.Nested(value(&v))
							}
						}
						return nil
					})
					if len(k) == key && len(v) == 4 {
						fn(k, hierarchy.ClassID(binary.NativeEndian.Uint32(v)))
					}
				}
				return nil
			})
		}
		return nil
	})
}

func value(to *[]byte) func(*netlink.AttributeDecoder) error {
	return func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			if ad.Type() == unix.NFTA_DATA_VALUE {
				*to = ad.Bytes()
			}
		}
		return nil
	}
}

// rules lists those of the interface's chain, each as text gives it and with the
// sets that it looks things up in.
func (r *reader) rules(f nftables.TableFamily, fn func(text []byte, sets []string)) error {
	return r.get(unix.NFT_MSG_GETRULE, f, true, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_RULE_CHAIN, r.n.chain())
	}, func(ad *netlink.AttributeDecoder) error {
		chain := ""
		var exprs []expr.Any
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				chain = ad.String()
			case unix.NFTA_RULE_EXPRESSIONS:
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						ad.Nested(func(ad *netlink.AttributeDecoder) error {
							e, err := decodeExpr(f, ad)
							exprs = append(exprs, e)
							return err
						})
					}
					return nil
				})
			}
		}
		if ad.Err() != nil || chain != r.n.chain() {
			return ad.Err()
		}
		var sets []string
		for _, e := range exprs {
			if l, ok := e.(*expr.Lookup); ok {
				sets = append(sets, l.SetName)
				l.SetID = 0 // means something within a batch only
			}
		}
		text, err := encodeExprs(f, exprs)
		fn(text, sets)
		return err
	})
}

// same compares rules that were read with those that should be there.
func (r *reader) same(is [][]byte, want [][]expr.Any) bool {
	return slices.EqualFunc(is, want, func(is []byte, want []expr.Any) bool {
		b, err := encodeExprs(nftables.TableFamilyUnspecified, want)
		return err == nil && bytes.Equal(is, b)
	})
}

// encodeExprs is a form in which rules can be compared, nil for one with an
// expression that we never write.
func encodeExprs(f nftables.TableFamily, exprs []expr.Any) ([]byte, error) {
	var text []byte
	for _, e := range exprs {
		if e == nil {
			return nil, nil
		}
		b, err := expr.Marshal(byte(f), e)
		if err != nil {
			return nil, err
		}
		text = append(text, b...)
	}
	return text, nil
}

// decodeExpr reads one expression, nil for one that we never write.
func decodeExpr(f nftables.TableFamily, ad *netlink.AttributeDecoder) (e expr.Any, err error) {
	name := ""
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			switch name {
			case "meta":
				e = &expr.Meta{}
			case "cmp":
				e = &expr.Cmp{}
			case "lookup":
				e = &expr.Lookup{}
			case "bitwise":
				e = &expr.Bitwise{}
			case "socket":
				e = &expr.Socket{}
			case "immediate":
				e = &expr.Immediate{}
			default:
				return nil, nil
			}
			if err := expr.Unmarshal(byte(f), ad.Bytes(), e); err != nil {
				return nil, err
			}
			if i, ok := e.(*expr.Immediate); ok && i.Register == unix.NFT_REG_VERDICT {
				e = &expr.Verdict{}
				if err := expr.Unmarshal(byte(f), ad.Bytes(), e); err != nil {
					return nil, err
				}
			}
		}
	}
	return e, ad.Err()
}
