package home

import (
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// TestTarget: homes of different branches and network namespaces are different, none is a
// file of the kernel's, and each is understood again.
func TestTarget(t *testing.T) {
	for _, tt := range []struct {
		netNS string
		path  hierarchy.Path
		want  string
	}{
		{"", "eth0", "/vifshape/eth0"},
		{"", "eth0/web", "/vifshape/eth0/web"},
		{"ns-7", "eth0/web/api", "/vifshape/ns-7/eth0/web/api"},
		{"", "ns-7/eth0", "/vifshape/_ns-7/eth0"},
		{"ns-7", "ns-7/web", "/vifshape/ns-7/ns-7/web"},
		{"", "eth0/tasks", "/vifshape/eth0/_tasks"},
		{"", "cgroup.procs/cpu.max", "/vifshape/_cgroup.procs/_cpu.max"},
	} {
		got := Target(tt.netNS, tt.path)
		if got != bind.ToCgroup(tt.want) {
			t.Errorf("%q in %q: %v, want %s", tt.path, tt.netNS, got, tt.want)
		}
		if ns, p, ok := Parse(got); ns != tt.netNS || p != tt.path || !ok {
			t.Errorf("%v: %q in %q, %v", got, p, ns, ok)
		}
	}
	for _, none := range []bind.Target{{}, bind.ToUser(0), bind.ToLink("vifshape"), bind.ToCgroup("/"), bind.ToCgroup(Root), bind.ToCgroup("/vifshaper/eth0"), bind.ToCgroup(Root + "/eth0//web")} {
		if ns, p, ok := Parse(none); ok {
			t.Errorf("%v: %q in %q", none, p, ns)
		}
	}
}
