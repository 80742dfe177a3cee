//go:build linux

package vm

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/tc/tctest/vm/guest"
)

// shipped are the modules that every machine can load, with what they need:
// patterns of names.
var shipped = []string{
	"sch_*", "cls_*", "act_*", "em_*",
	"ifb", "veth", "dummy", "tun", "bridge", "macvlan", "macvtap", "ipvlan", "8021q", "bonding", "team", "vrf", "macsec",
	"wireguard", "vxlan", "geneve", "bareudp", "ip_gre", "ip6_gre", "ipip", "sit", "ip6_tunnel", "ip_vti", "xfrm_interface",
	"ipv6", "nf_tables", "nft_*", "nf_conntrack", "inet_diag", "tcp_diag", "udp_diag", "tcp_bbr",
	"crc32c_generic", "crc32c_intel",
}

// kernelModule is one module of a kernel's tree.
type kernelModule struct {
	needs, aliases []string
	data           []byte
}

// addModules adds the shipped modules that are below dir, without those named
// in without.
func addModules(w *cpio, dir string, without []string) error {
	paths := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := strings.CutSuffix(d.Name(), ".ko"); ok {
			paths[guest.ModuleName(name)] = p
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range without {
		delete(paths, guest.ModuleName(n))
	}
	var todo []string
	for name := range paths {
		if slices.ContainsFunc(shipped, func(pattern string) bool {
			ok, err := filepath.Match(guest.ModuleName(pattern), name)
			return err == nil && ok
		}) {
			todo = append(todo, name)
		}
	}
	done := map[string]kernelModule{}
	for len(todo) > 0 {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if _, ok := done[name]; ok || paths[name] == "" {
			continue
		}
		m, err := readModule(paths[name])
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		done[name] = m
		for _, n := range m.needs {
			todo = append(todo, strings.TrimPrefix(n, "?"))
		}
	}
	var list strings.Builder
	w.dir(guest.ModuleDir)
	for name, m := range done {
		w.file(filepath.Join(guest.ModuleDir, name+".ko"), 0o644, m.data)
		fmt.Fprintf(&list, "%s\t%s\t%s\n", name, strings.Join(m.needs, " "), strings.Join(m.aliases, " "))
	}
	w.file(guest.Modules, 0o644, []byte(list.String()))
	return w.err
}

// readModule reads a module and what it says about itself in its section
// .modinfo.
func readModule(path string) (m kernelModule, err error) {
	if m.data, err = os.ReadFile(path); err != nil {
		return m, err
	}
	f, err := elf.NewFile(bytes.NewReader(m.data))
	if err != nil {
		return m, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return m, fmt.Errorf("no section .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return m, err
	}
	for _, kv := range strings.Split(string(info), "\x00") {
		key, value, _ := strings.Cut(kv, "=")
		switch key {
		case "depends":
			for _, n := range strings.Split(value, ",") {
				if n != "" {
					m.needs = append(m.needs, guest.ModuleName(n))
				}
			}
		case "alias":
			m.aliases = append(m.aliases, value)
		case "softdep":
			// "pre: a b post: c"; those before are tried and may fail.
			if pre, ok := strings.CutPrefix(value, "pre: "); ok {
				pre, _, _ = strings.Cut(pre, "post:")
				for _, n := range strings.Fields(pre) {
					m.needs = append(m.needs, "?"+guest.ModuleName(n))
				}
			}
		}
	}
	return m, nil
}
