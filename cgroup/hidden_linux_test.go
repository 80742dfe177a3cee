package cgroup_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// bindHidden binds its own branch's cgroup and sends from it where no cgroup file
// system can be seen. In a mount namespace with a fresh sysfs, as "ip netns exec" makes
// it, a process above still has one; for process 1 of a container nobody has.
func bindHidden(how, dir, to, key string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	switch how {
	case "sysfs":
		if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil {
			return err
		}
		if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
			return err
		}
	case "container":
		// first into a cgroup namespace: outside one a new mount would set the
		// flags of the machine's hierarchy
		if err := os.WriteFile(dir+"/cgroup.procs", []byte("0"), 0); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return err
		}
		all, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
		if err != nil {
			return err
		}
		for _, m := range all {
			if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
				return err
			}
		}
		if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			return err
		}
	}
	c, err := rtnl.Open(rtnl.Config{})
	if err != nil {
		return err
	}
	defer c.Close()
	dev, err := tc.Find(c, "eth0")
	if err != nil {
		return err
	}
	b, err := cgroup.NewBinder(cgroup.Config{Hook: hook.Of(dev.Interface), Interface: "eth0", NetNS: key})
	if err != nil {
		return err
	}
	defer b.Close()
	h, err := b.Homes()
	if err != nil {
		return err
	}
	target, _, err := h.Make("eth0/web")
	if err != nil {
		return err
	}
	bind := hierarchy.Bound{Target: target, Class: red}
	if _, err := b.Do(context.Background(), []hierarchy.Step{{Action: hierarchy.Create, New: &bind}}); err != nil {
		return err
	}
	var s hierarchy.State
	if err := b.Read(context.Background(), &s); err != nil {
		return err
	}
	if len(s.Bound) != 1 || s.Bound[0] != bind {
		return fmt.Errorf("bindings %v, want %v", s.Bound, bind)
	}
	if err := home.Join(h.Tree, target, 0); err != nil {
		return err
	}
	if err := datagrams(to, 30, nil); err != nil {
		return err
	}
	fmt.Println(cgroup.Probe().Ways[0].Text)
	// out of the home, so that it can go
	if err := home.Join(h.Tree, targetOf("cgroup:/"), 0); err != nil {
		return err
	}
	kept, err := home.RemoveAll(key, "eth0", true)
	if len(kept) != 0 {
		err = errors.Join(err, fmt.Errorf("homes kept: %v", kept))
	}
	return err
}

// runHidden starts the program in the near namespace, expects its packets in red,
// and returns what it found.
func (n *network) runHidden(t *testing.T, how, dir string, flags uintptr) string {
	t.Helper()
	apply(t, n.binder(t, bind.WayBPF))
	key, err := cgroupfs.NetNSKey(n.Near.FD())
	if err != nil {
		t.Fatal(err)
	}
	cmd := tctest.Command(t, "bindHidden", how, dir, n.Far4.String()+":9", key)
	var out strings.Builder
	cmd.Stdout = &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	only(t, n.during(t, func() {
		if err := n.Near.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	}), red, 30)
	return out.String()
}

func TestKernelHidden(t *testing.T) {
	for _, tt := range []struct {
		how   string
		flags uintptr
		want  string
	}{
		{"sysfs", unix.CLONE_NEWNS, "sees it: hidden in this mount namespace)"},
		{"container", unix.CLONE_NEWNS | unix.CLONE_NEWPID, "a private mount of our own, below the root of a cgroup namespace"},
	} {
		t.Run(tt.how, func(t *testing.T) {
			require(t, bind.WayBPF)
			n := newNetwork(t)
			p := newPlace(t, bind.WayBPF)
			if got := n.runHidden(t, tt.how, p.dir, tt.flags); !strings.Contains(got, tt.want) {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
}

// TestKernelNotMounted: BPF on a machine that uses cgroup v1 alone, again and
// again. It is for TestVM, which has such a machine.
func TestKernelNotMounted(t *testing.T) {
	if !vm.Inside() {
		return
	}
	require(t, bind.WayBPF)
	if mountsV2(t) {
		t.Fatal("the machine mounts cgroup v2")
	}
	for range 2 {
		n := newNetwork(t)
		if got, want := n.runHidden(t, "", "", unix.CLONE_NEWNS), "a private mount of our own\n"; !strings.HasSuffix(got, want) {
			t.Errorf("found %q, want %q", got, want)
		}
	}
}

func TestKernelNetNSKey(t *testing.T) {
	n, m := tctest.NetNS(t), tctest.NetNS(t)
	var keys []string
	for _, fd := range []int{n.FD(), m.FD()} {
		k, err := cgroupfs.NetNSKey(fd)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	if !strings.HasPrefix(keys[0], "ns-") || !strings.HasPrefix(keys[1], "ns-") || keys[0] == keys[1] {
		t.Errorf("keys %q, want two different ns-N", keys)
	}
	err := n.Do(func() error {
		own, err := cgroupfs.NetNSKey(-1)
		if own != keys[0] {
			t.Errorf("key %q from inside, want %q", own, keys[0])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	before, err := cgroupfs.NetNSKey(-1)
	if err != nil {
		t.Fatal(err)
	}
	if before == keys[0] || before == keys[1] {
		t.Errorf("key %q of the tests' own namespace is another's", before)
	}
	// a setting that only the initial namespace has
	_, err = os.Stat("/proc/sys/net/core/netdev_budget")
	if initial := err == nil; initial != (before == "") {
		t.Errorf("key %q of the tests' own namespace, which is the initial one: %v", before, initial)
	}
}

// unmountNetCls has net_cls mounted nowhere in a mount namespace of its own, and its hierarchies
// as somebody may have them.
func unmountNetCls(how, dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	// whoever else mounted it is in the way of finding it unmounted
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "cgroup" || !strings.Contains(m.VFSOptions, "net_cls"), false
	})
	if err != nil {
		return err
	}
	for _, m := range all {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	switch how {
	case "tmpfs": // as v1 and hybrid hosts have it
		err = unix.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "")
	case "other":
		if err = unix.Unmount("/sys", unix.MNT_DETACH); err == nil {
			err = unix.Mount("sysfs", "/sys", "sysfs", 0, "")
		}
	case "v1", "elsewhere", "v2": // one hierarchy alone, as runc needs it
		v2, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
		if err != nil {
			return err
		}
		if err := alone(how, dir, v2[0].Mountpoint); err != nil {
			return err
		}
	}
	if err == nil {
		// process 1 of its own: no process above sees more
		err = unix.Mount("proc", "/proc", "proc", 0, "")
	}
	return err
}

// alone has one hierarchy mounted: of v1 where distributions have it, or below a directory, or
// that of v2, which is not mounted anew, since that could reset its options.
func alone(how, dir, v2 string) error {
	const usual = "/sys/fs/cgroup"
	if err := os.MkdirAll(dir+"/devices", 0o755); err != nil {
		return err
	}
	if how == "v2" {
		if err := unix.Mount(v2, dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return err
	}
	switch how {
	case "v2":
		return unix.Mount(dir, usual, "", unix.MS_MOVE, "")
	case "v1":
		if err := unix.Mount("tmpfs", usual, "tmpfs", 0, ""); err != nil {
			return err
		}
		dir = usual
		if err := os.Mkdir(dir+"/devices", 0o755); err != nil {
			return err
		}
	}
	return unix.Mount("cgroup", dir+"/devices", "cgroup", 0, "devices")
}

// useUnmounted uses net_cls where it is not mounted, and makes a cgroup in it if it is
// told one.
func useUnmounted(how, runDir, foreign string) error {
	if err := unmountNetCls(how, runDir); err != nil {
		return err
	}
	b, err := cgroup.NewBinder(cgroup.Config{
		Hook: blind{}, Interface: "eth0", Ways: []bind.Way{bind.WayNetCls}, RunDir: runDir, Warn: func(s string) { fmt.Println(s) },
	})
	if err != nil {
		return err
	}
	fmt.Println(basis(bind.WayNetCls))
	if _, err := b.Hook(0); err != nil {
		return err
	}
	fmt.Println(basis(bind.WayNetCls))
	if foreign != "" {
		// somebody else's cgroup in it
		all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Source != "vifshape", false })
		if err != nil || len(all) != 1 {
			return fmt.Errorf("mounts %v, error %v", all, err)
		}
		dir := all[0].Mountpoint + "/" + foreign
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		defer os.Remove(dir)
	}
	if err := b.Close(); err != nil {
		return err
	}
	fmt.Println(basis(bind.WayNetCls))
	return nil
}

// basis is what a way stands on here.
func basis(way bind.Way) string {
	for _, w := range cgroup.Probe().Ways {
		if w.Way == way {
			return w.Text
		}
	}
	return "no report of it"
}

// TestKernelMountsNetCls: it is mounted when it has to be, and goes again when
// nothing is in it.
func TestKernelMountsNetCls(t *testing.T) {
	require(t, bind.WayNetCls)
	dir := t.TempDir()
	const before = "net_cls, which will be mounted when it is used\n"
	for _, tt := range []struct{ name, how, at, cgroup string }{
		{"where distributions do", "tmpfs", "/sys/fs/cgroup/net_cls", ""},
		{"in the run directory", "other", dir + "/net_cls", ""},
		{"in use", "other", dir + "/net_cls", tctest.Name()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := tctest.Command(t, "useUnmounted", tt.how, dir, tt.cgroup)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			now := "net_cls at " + tt.at + "\n"
			want := before + "mounted the net_cls cgroup hierarchy at " + tt.at + "\n" + now
			if tt.cgroup == "" {
				want += before
			} else {
				want += now
			}
			if diff := cmp.Diff(want, string(out)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if ents, err := os.ReadDir(dir); err != nil || len(ents) != 0 && tt.cgroup == "" {
				t.Errorf("left in the run directory: %v, error %v", ents, err)
			}
		})
	}
}
