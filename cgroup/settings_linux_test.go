package cgroup_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	rules "github.com/vifshape/vifshape/cgroup/nft"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelPriorityRules sees the rules that write the priority, and no others.
func TestKernelPriorityRules(t *testing.T) {
	n := tctest.NetNS(t)
	look := func(want ...string) {
		t.Helper()
		err := n.Do(func() error {
			got, err := rules.PriorityRules()
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("rules (-want +got):\n%s", d)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	look()
	add := func(table string, family nftables.TableFamily, exprs ...expr.Any) {
		t.Helper()
		err := n.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			tb := c.AddTable(&nftables.Table{Name: table, Family: family})
			chain := c.AddChain(&nftables.Chain{Name: "out", Table: tb, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
			c.AddRule(&nftables.Rule{Table: tb, Chain: chain, Exprs: exprs})
			return c.Flush()
		})
		tctest.Require(t, !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT), "nf_tables")
		if err != nil {
			t.Fatal(err)
		}
	}
	number := &expr.Immediate{Register: 1, Data: []byte{0x10, 0, 0x1f, 0x07}}
	add("reads", nftables.TableFamilyINet, &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: 1})
	add("marks", nftables.TableFamilyIPv4, number, &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
	add("vifshape", nftables.TableFamilyINet, number, &expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1})
	look()
	add("classes", nftables.TableFamilyIPv4, number, &expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1})
	look("ip classes out")
}

// TestKernelSettings holds what is read against what the mount table and procfs
// say in other words.
func TestKernelSettings(t *testing.T) {
	tctest.RequireRoot(t)
	got, err := cgroup.ReadSettings()
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	at, options := "", ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" && at == "" {
			at, options = f[1], f[3]
		}
	}
	if got.Cgroup2 != at {
		t.Errorf("cgroup v2 at %q, in the mount table at %q", got.Cgroup2, at)
	}
	if want := strings.Contains(options, "nsdelegate"); got.Delegate != want {
		t.Errorf("nsdelegate %t, in the mount table: %t", got.Delegate, want)
	}
	if got.Compiled == nil {
		t.Fatal("root could not load a program")
	}
	b, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable")
	if want := err == nil && strings.TrimSpace(string(b)) != "0"; *got.Compiled != want {
		t.Errorf("programs are compiled: %t, and bpf_jit_enable is %q", *got.Compiled, b)
	}
}

// TestKernelMover: who owns the cgroup above a binding can move processes out of
// it, and no one but root can elsewhere.
func TestKernelMover(t *testing.T) {
	dir := tctest.Cgroup(t)
	for _, d := range []string{"user", "user/app"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(dir, "user", "cgroup.procs"), 1234, 1234); err != nil {
		t.Fatal(err)
	}
	v2, err := cgroupfs.FindV2()
	if err != nil {
		t.Fatal(err)
	}
	defer v2.Close()
	top := "cgroup:" + strings.TrimPrefix(dir, tctest.Cgroup2Mount(t))
	for target, want := range map[string]uint32{
		top:               0,
		top + "/user":     0,
		top + "/user/app": 1234,
		"uid:1234":        0,
		"cgroup:/":        0,
	} {
		if got, err := home.Mover(v2, targetOf(target)); err != nil || got != want {
			t.Errorf("Mover(%q) = %d, %v; want %d", target, got, err, want)
		}
	}
	if _, err := home.Mover(v2, targetOf(top+"/none/below")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of what is not there: %v", err)
	}
}
