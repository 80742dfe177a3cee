package escape

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

const treeWhy = "CAP_NET_ADMIN is the right to change the queue"

// tree are changes of the queue and of the classifier.
func tree() []Attempt {
	const family = "queue and classifier"
	open := []Hole{{Level: Tag, User: Root, Why: treeWhy}}
	bpf := []Hole{{Level: Tag, User: Root, Ways: []bind.Way{bind.WayBPF, bind.WayNetCls}, Why: treeWhy}}
	nft := []Hole{{Level: Tag, User: Root, Ways: []bind.Way{bind.WayNft, bind.WayNetClsNft}, Why: treeWhy}}
	a := func(name, text string, holes []Hole, do func(s *stage) error) Attempt {
		return Attempt{Name: name, Family: family, Text: text, Holes: holes, Spoils: true, do: func(s *stage) error {
			if err := do(s); err != nil {
				return err
			}
			return s.plain()
		}}
	}
	const root = 0xffffffff // TC_H_ROOT
	return []Attempt{
		a("qdisc-delete", "delete the root qdisc", open, func(s *stage) error {
			return s.tc("RTM_DELQDISC", unix.RTM_DELQDISC, 0, 0, root, 0, nil)
		}),
		a("qdisc-replace", "replace the root qdisc", open, func(s *stage) error {
			return s.tc("RTM_NEWQDISC", unix.RTM_NEWQDISC, netlink.Create|netlink.Replace, 0x50000, root, 0, func(ae *netlink.AttributeEncoder) {
				ae.String(unix.TCA_KIND, "pfifo")
			})
		}),
		a("class-raise", "raise the class's own ceiling", open, func(s *stage) error {
			return s.tc("RTM_NEWTCLASS", unix.RTM_NEWTCLASS, 0, uint32(s.Own), 0, 0, func(ae *netlink.AttributeEncoder) {
				ae.String(unix.TCA_KIND, "htb")
				ae.Nested(unix.TCA_OPTIONS, func(ae *netlink.AttributeEncoder) error {
					// struct tc_htb_opt: rate and ceil, of 12 bytes, buffers, quantum
					b := make([]byte, 44)
					b[0], b[12] = 3, 3
					b[1], b[13] = 1, 1 // TC_LINKLAYER_ETHERNET
					binary.NativeEndian.PutUint32(b[8:], 1e9)
					binary.NativeEndian.PutUint32(b[20:], 1e9)
					binary.NativeEndian.PutUint32(b[24:], 10000)
					binary.NativeEndian.PutUint32(b[28:], 10000)
					binary.NativeEndian.PutUint32(b[32:], 60000)
					ae.Bytes(1, b) // TCA_HTB_PARMS
					return nil
				})
			})
		}),
		a("class-delete", "delete the class", open, func(s *stage) error {
			return s.tc("RTM_DELTCLASS", unix.RTM_DELTCLASS, 0, uint32(s.Own), 0, 0, nil)
		}),
		a("filter-on-htb", "a filter of its own on the root qdisc", nil, func(s *stage) error {
			p, err := program(s, asm.Instructions{asm.Mov.Imm(asm.R0, int32(s.Other)), asm.Return()})
			if err != nil {
				return err
			}
			defer p.Close()
			return s.filter(p, uint32(s.Root), 0)
		}),
		a("filter-before", "a filter in front of the classifier", open, func(s *stage) error {
			p, err := classifier(s)
			if err != nil {
				return err
			}
			defer p.Close()
			err = s.tc("RTM_NEWQDISC", unix.RTM_NEWQDISC, netlink.Create|netlink.Excl, 0xffff0000, 0xfffffff1, 0, func(ae *netlink.AttributeEncoder) {
				ae.String(unix.TCA_KIND, "clsact")
			})
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
			return s.filter(p, 0xfffffff3, 1) // TC_H_MIN_EGRESS
		}),
		a("tcx-before", "a TCX program in front of the classifier", open, func(s *stage) error {
			p, err := classifier(s)
			if err != nil {
				return err
			}
			defer p.Close()
			l, err := link.AttachTCX(link.TCXOptions{Interface: s.Index, Program: p, Attach: ebpf.AttachTCXEgress, Anchor: link.Head()})
			if errors.Is(err, ebpf.ErrNotSupported) {
				return missing("the kernel has no TCX")
			}
			if err != nil {
				return call("bpf BPF_LINK_CREATE", err)
			}
			defer l.Close()
			return s.plain()
		}),
		a("clsact-delete", "delete the classifier's hook", bpf, func(s *stage) error {
			if s.Program == 0 {
				return missing("the classifier is no program")
			}
			return s.tc("RTM_DELQDISC", unix.RTM_DELQDISC, 0, 0xffff0000, 0xfffffff1, 0, nil)
		}),
		a("map-rewrite", "the classifier's maps, by their numbers", []Hole{{Level: Tag, User: Root, Ways: []bind.Way{bind.WayBPF}, Why: "root may write any map; level lock refuses bpf"}}, func(s *stage) error { return rewrite(s.Program, s.Own, s.Other) }),
		a("matches-rewrite", "the maps of matches: what nobody has bound is matched, and the own branch too", []Hole{{Level: Tag, User: Root, Ways: []bind.Way{bind.WayBPF}, Why: "root may write any map; level lock refuses bpf"}}, func(s *stage) error {
			return eachMap(s.Match, "no match is in force", func(m *ebpf.Map) (int, error) { return rewriteScope(m, s.Own) })
		}),
		a("map-pins", "the classifier's maps, by a pin", nil, func(*stage) error {
			found, err := pins("/sys/fs/bpf")
			if err != nil {
				return call("read /sys/fs/bpf", err)
			}
			if found {
				return nil
			}
			return call("bpf BPF_OBJ_GET", unix.ENOENT) // nothing is pinned
		}),
		a("nft-flush", "delete the classifier's tables", nft, func(s *stage) error {
			c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
			if err != nil {
				return call("socket AF_NETLINK", err)
			}
			defer c.Close()
			deleted := false
			for _, f := range []byte{unix.NFPROTO_INET, unix.NFPROTO_NETDEV, unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
				err := deleteTable(c, f)
				if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
					return call("nftables NFT_MSG_DELTABLE", err)
				}
				deleted = deleted || err == nil
			}
			if !deleted {
				return missing("the classifier is no rule of nf_tables")
			}
			return nil
		}),
	}
}

// tc asks for a change on the shaped interface.
func (s *stage) tc(name string, typ netlink.HeaderType, flags netlink.HeaderFlags, handle, parent, info uint32, attrs func(*netlink.AttributeEncoder)) error {
	b := make([]byte, 20) // struct tcmsg
	put := binary.NativeEndian.PutUint32
	put(b[4:], uint32(s.Index))
	put(b[8:], handle)
	put(b[12:], parent)
	put(b[16:], info)
	ae := netlink.NewAttributeEncoder()
	if attrs != nil {
		attrs(ae)
	}
	more, err := ae.Encode()
	if err != nil {
		return err
	}
	return s.rtnetlink(name, netlink.Message{Header: netlink.Header{Type: typ, Flags: flags}, Data: append(b, more...)})
}

func (s *stage) rtnetlink(name string, m netlink.Message) error {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return call("socket AF_NETLINK", err)
	}
	defer c.Close()
	m.Header.Flags |= netlink.Request | netlink.Acknowledge
	_, err = c.Execute(m)
	return call("netlink "+name, err)
}

// filter adds a program as a filter; preference 0 is for the kernel to choose.
func (s *stage) filter(p *ebpf.Program, parent, preference uint32) error {
	return s.tc("RTM_NEWTFILTER", unix.RTM_NEWTFILTER, netlink.Create|netlink.Excl, 0, parent, preference<<16|0x0300, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.TCA_KIND, "bpf")
		ae.Nested(unix.TCA_OPTIONS, func(ae *netlink.AttributeEncoder) error {
			ae.Uint32(6, uint32(p.FD())) // TCA_BPF_FD
			ae.String(7, "escape")       // TCA_BPF_NAME
			if preference != 0 {
				ae.Uint32(8, 1) // TCA_BPF_FLAGS: the program's answer is the action
			}
			return nil
		})
	})
}

func program(_ *stage, i asm.Instructions) (*ebpf.Program, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: i})
	return p, call("bpf BPF_PROG_LOAD", err)
}

// classifier is a program that puts everything into the other branch and lets no
// further one run.
func classifier(s *stage) (*ebpf.Program, error) {
	const priority = 32 // of struct __sk_buff
	return program(s, asm.Instructions{
		asm.Mov.Imm(asm.R2, int32(s.Other)), asm.StoreMem(asm.R1, priority, asm.R2, asm.Word),
		asm.Mov.Imm(asm.R0, 0), asm.Return(),
	})
}

// rewrite puts the other class wherever the own one is in a program's maps.
func rewrite(id uint32, own, other hierarchy.ClassID) error {
	return eachMap(id, "the classifier is no program", func(m *ebpf.Map) (int, error) { return rewriteMap(m, own, other) })
}

// eachMap writes to the maps of a program; without one says what 0 for a program is.
func eachMap(id uint32, without string, write func(*ebpf.Map) (written int, err error)) error {
	if id == 0 {
		return missing(without)
	}
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return call("bpf BPF_PROG_GET_FD_BY_ID", err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return call("bpf BPF_OBJ_GET_INFO_BY_FD", err)
	}
	ids, _ := info.MapIDs()
	written := 0
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return call("bpf BPF_MAP_GET_FD_BY_ID", err)
		}
		n, err := write(m)
		m.Close()
		if err != nil {
			return call("bpf BPF_MAP_UPDATE_ELEM", err)
		}
		written += n
	}
	if written == 0 {
		return missing("the class is in none of the program's maps")
	}
	return nil
}

// rewriteScope has what the matches say of the interface's rest hold for another class. Keys
// of these maps begin with the minor number (bpf/match.h).
func rewriteScope(m *ebpf.Map, class hierarchy.ClassID) (n int, err error) {
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	if !slices.Contains([]string{"vif_scopes", "vif_v4", "vif_v6"}, info.Name) {
		return 0, nil
	}
	k, v := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	var all [][2][]byte
	it := m.Iterate()
	for it.Next(&k, &v) {
		if binary.NativeEndian.Uint16(k) == hierarchy.RestMinor {
			all = append(all, [2][]byte{slices.Clone(k), slices.Clone(v)})
		}
	}
	if err := it.Err(); err != nil {
		return 0, err
	}
	for _, x := range all {
		binary.NativeEndian.PutUint16(x[0], class.Minor())
		if err := m.Put(x[0], x[1]); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func rewriteMap(m *ebpf.Map, own, other hierarchy.ClassID) (n int, err error) {
	if m.Type() != ebpf.Hash && m.Type() != ebpf.LRUHash {
		return 0, nil
	}
	// of the words of a value that may be one, which is where the class stands
	at := func(v []byte) int {
		for i := 0; i+4 <= len(v); i += 4 {
			if binary.NativeEndian.Uint32(v[i:]) == uint32(own) {
				return i
			}
		}
		return -1
	}
	k, v := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	var keys [][]byte
	it := m.Iterate()
	for it.Next(&k, &v) {
		if at(v) >= 0 {
			keys = append(keys, append([]byte{}, k...))
		}
	}
	if err := it.Err(); err != nil {
		return 0, err
	}
	for _, k := range keys {
		if err := m.Lookup(k, &v); err != nil {
			return n, err
		}
		if i := at(v); i >= 0 {
			binary.NativeEndian.PutUint32(v[i:], uint32(other))
		}
		if err := m.Put(k, v); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// pins says whether something of vifshape is pinned.
func pins(dir string) (bool, error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	for _, e := range all {
		if len(e.Name()) >= 3 && e.Name()[:3] == "vif" {
			return true, nil
		}
	}
	return false, err
}

// deleteTable deletes the classifier's table of one family.
func deleteTable(c *netlink.Conn, family byte) error {
	ae := netlink.NewAttributeEncoder()
	ae.String(1, "vifshape") // NFTA_TABLE_NAME
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	message := func(typ netlink.HeaderType, flags netlink.HeaderFlags, family, id byte, b []byte) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request | flags}, Data: append([]byte{family, 0, 0, id}, b...)}
	}
	const subsystem = unix.NFNL_SUBSYS_NFTABLES
	_, err = c.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, subsystem, nil),
		message(subsystem<<8|unix.NFT_MSG_DELTABLE, netlink.Acknowledge, family, 0, attrs),
		message(unix.NFNL_MSG_BATCH_END, 0, 0, subsystem, nil),
	})
	if err == nil {
		_, err = c.Receive()
	}
	return err
}
