package policy

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// VLAN says whether an interface is called as VLANs are by most who make them, as in
// eth0.100.
func VLAN(name string) bool {
	i := strings.LastIndexByte(name, '.')
	if i < 1 || strings.HasPrefix(name[i+1:], "0") {
		return false
	}
	id, err := strconv.ParseUint(name[i+1:], 10, 12)
	return err == nil && id > 0
}

// Unquoted are warnings about branches whose names are those of interfaces without
// their quotes: [interface.eth0.100] is the branch eth0/100 and not the interface
// eth0.100. Meant says of a name whether there is such an interface, or may be; those
// that the policy has itself are not asked for.
func (p *Policy) Unquoted(meant func(name string) bool) Errors {
	var all Errors
	for _, t := range p.Trees {
		for _, b := range t.Root.Children {
			name := t.Port.Device + "." + b.Path.Base()
			if p.Names(name) || !meant(name) {
				continue
			}
			r := report{file: p.file, index: p.index}
			msg, hint := unquoted(t.Port.Device, b.Path.Base())
			r.add(mistake{off: p.offset(b.Path, ""), path: b.Path, warning: true, msg: msg, hint: hint})
			all = append(all, r.errs()...)
		}
	}
	return all
}

func unquoted(iface, branch string) (msg, hint string) {
	name := iface + "." + branch
	return fmt.Sprintf("%q is a branch of %s here", branch, iface),
		fmt.Sprintf("if the interface %s is meant, quote its name: [%s]", name, toml.Key{"interface", name})
}
