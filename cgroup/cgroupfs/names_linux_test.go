package cgroupfs

import "testing"

func TestNetNSKey(t *testing.T) {
	for _, tt := range []struct {
		name string
		id   netNSID
		want string
	}{
		{"initial, 6.18", netNSID{inode: 0xeffffff9, cookie: 3}, ""},
		{"initial, 5.14", netNSID{inode: 4026531840, cookie: 1}, ""},
		{"initial, 5.10", netNSID{inode: 4026531992, sysctl: true}, ""},
		{"another", netNSID{inode: 4026532222, cookie: 4097}, "ns-4097"},
		{"another, 5.10", netNSID{inode: 4026532222}, "ns-i4026532222"},
	} {
		if got := tt.id.key(); got != tt.want {
			t.Errorf("%s: key %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestEscape(t *testing.T) {
	for name, want := range map[string]string{
		"web": "web", "nginx.service": "nginx.service", "eth0.100": "eth0.100",
		"tasks": "_tasks", "cgroup.procs": "_cgroup.procs", "memory.service": "_memory.service", "memoryx.service": "memoryx.service",
		"_x": "__x", ".x": "_.x", "net_cls.classid": "_net_cls.classid",
	} {
		if got := Escape(name); got != want {
			t.Errorf("escape(%q) = %q, want %q", name, got, want)
		}
		if got := Unescape(Escape(name)); got != name {
			t.Errorf("unescape(escape(%q)) = %q", name, got)
		}
	}
}
