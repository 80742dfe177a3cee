package cgroupfs

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Of a mount table only cgroups are taken apart, whatever else is in it, and whatever it is
// called.
func TestMountsIn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	const table = `22 27 0:21 / /proc rw,relatime - proc proc rw
30 27 0:25 /../.. /sys/fs/cgroup/a\040-\040cgroup2 rw shared:9 master:4 - cgroup2 cgroup2 rw,nsdelegate
31 27 0:26 / /mnt\040-\040cgroup rw - tmpfs none rw
32 27 0:27 / /sys/fs/cgroup/net_cls,net_prio rw - cgroup cgroup rw,net_cls,net_prio
33 27 0:28 / /srv rw - cifs //srv/My Docs rw
`
	if err := os.WriteFile(file, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := mountsIn(file)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range all {
		got = append(got, m.FSType+" "+m.Root+" "+m.Mountpoint)
	}
	want := []string{"cgroup2 /../.. /sys/fs/cgroup/a - cgroup2", "cgroup / /sys/fs/cgroup/net_cls,net_prio"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, not %q", got, want)
	}
	if v2, v1 := slices.IndexFunc(all, isV2), slices.IndexFunc(all, isNetCls); v2 != 0 || v1 != 1 {
		t.Errorf("v2 is mount %d, and net_cls %d", v2, v1)
	}
}
