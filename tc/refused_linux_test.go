package tc_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

func TestKernelGone(t *testing.T) {
	b, p := veth(t)
	tree := b.tree(hierarchy.Gbit, branch("x", hierarchy.Mbit))
	b.apply(tree)
	if err := p.Near.DeleteLink("eth0"); err != nil {
		t.Fatal(err)
	}
	// The same name is not the same interface.
	if err := p.Near.AddLink(lab.Link{Name: "eth0", Kind: "ifb"}); err != nil {
		t.Fatal(err)
	}
	var s hierarchy.State
	state := tree.State().Ports[0]
	for name, call := range map[string]func() error{
		"Read":      func() error { return b.Read(t.Context(), &s) },
		"Settle":    func() error { return b.Settle(t.Context(), tree) },
		"Count":     func() error { _, err := b.Count(t.Context(), &s); return err },
		"Stats":     func() error { _, err := b.Stats(); return err },
		"LeafStats": func() error { _, err := b.LeafStats(); return err },
		"Do class": func() error {
			_, err := b.Do(t.Context(), []hierarchy.Step{{Action: hierarchy.Create, New: &state.Classes[0]}})
			return err
		},
		"Do root": func() error {
			_, err := b.Do(t.Context(), []hierarchy.Step{{Action: hierarchy.Create, New: &state.Root}})
			return err
		},
	} {
		if err := call(); !errors.Is(err, rtnl.ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKernelNoDevice(t *testing.T) {
	_, p := veth(t)
	b := open(t, p.Near, "eth0")
	for name, want := range map[string]string{
		"eht0":                           "eht0: no such interface: did you mean eth0?",
		"eth0@if7":                       "eth0@if7: no such interface: did you mean eth0?",
		"wlp0s20f3":                      "wlp0s20f3: no such interface",
		"a-name-that-is-longer-than-any": "a-name-that-is-longer-than-any: no such interface",
		"":                               ": no such interface",
	} {
		_, err := tc.Find(b.conn, name)
		var no *link.NotFoundError
		if !errors.As(err, &no) || err.Error() != want {
			t.Errorf("%q: %v, want %s", name, err, want)
		}
	}
}

// readAndBeRefused reads eth0, which has a tree, and has its changes refused.
func readAndBeRefused(tctest.Told) (string, error) {
	c, err := rtnl.Open(rtnl.Config{})
	if err != nil {
		return "", err
	}
	defer c.Close()
	d, err := tc.Find(c, "eth0")
	if err != nil {
		return "", err
	}
	var s hierarchy.State
	if err := d.Read(context.Background(), &s); err != nil {
		return "", err
	}
	stats, err := d.Stats()
	if err != nil {
		return "", err
	}
	is := s.On(d.Port())
	if len(is.Classes) != 3 || len(stats) != 3 {
		return "", fmt.Errorf("read %d classes, counters of %d", len(is.Classes), len(stats))
	}
	// A plan can be made, from what is known of the kernel's modules.
	plan := &hierarchy.Tree{Root: &hierarchy.Branch{Class: hierarchy.Class{Rate: 8, Ceil: 8}}}
	if err := d.Settle(context.Background(), plan); err != nil || plan.Root.Qdisc.Kind == "" {
		return "", fmt.Errorf("settle: %+v, %v", plan.Root, err)
	}
	for what, err := range map[string]error{
		"change root": second(d.Do(context.Background(), []hierarchy.Step{{Action: hierarchy.Delete, Old: &is.Root}})),
		"change class": second(d.Do(context.Background(), []hierarchy.Step{
			{Action: hierarchy.Change, Old: &is.Classes[2], New: &is.Classes[2]},
		})),
		"detach": hook.Of(d.Interface).DetachEgress(),
		"attach": hook.Of(d.Interface).AttachEgress(0, "x"),
	} {
		if what == "detach" && err == nil {
			continue // nothing to detach
		}
		if !errors.Is(err, rtnl.ErrNotPrivileged) || !strings.HasSuffix(err.Error(), "(needs root or CAP_NET_ADMIN)") {
			return "", fmt.Errorf("%s: %v", what, err)
		}
	}
	return "", nil
}

func second(_ int, err error) error { return err }

func TestKernelUnprivileged(t *testing.T) {
	b, p := veth(t)
	b.apply(b.tree(hierarchy.Gbit, branch("x", hierarchy.Mbit)))
	cmd := tctest.Command(t, "readAndBeRefused")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	// The test binary lies in a directory that is root's alone.
	self, err := os.Open(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd.Path, cmd.ExtraFiles = "/proc/self/fd/3", []*os.File{self}
	if err := p.Near.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// Asking what the kernel has changes nothing.
func TestKernelSettleTouchesNothing(t *testing.T) {
	b, p := veth(t)
	show := func() string { return tctest.TC(t, p.Near, "qdisc", "show") }
	before := show()
	tree := resolve(t, hierarchy.Spec{Interface: "eth0", BranchSpec: hierarchy.BranchSpec{Rate: hierarchy.Absolute(hierarchy.Gbit)}})
	for range 2 {
		if err := b.Settle(t.Context(), tree); err != nil {
			t.Fatal(err)
		}
		if after := show(); after != before {
			t.Fatalf("%q, was %q", after, before)
		}
		b.apply(tree)
		before = show()
	}
	bad := resolve(t, hierarchy.Spec{
		Interface:  "eth0",
		BranchSpec: hierarchy.BranchSpec{Rate: hierarchy.Absolute(hierarchy.Gbit), Children: []*hierarchy.BranchSpec{leaf("x", hierarchy.Mbit, "pfifo")}},
	})
	bad.Find("eth0/x").Qdisc.Kind = "none"
	bad.Line.Layer = "pppoa-vcmux"
	err := b.Settle(t.Context(), bad)
	if !errors.Is(err, rtnl.ErrNotSupported) || !strings.Contains(err.Error(), `eth0/x: qdisc "none" is not supported by this kernel: use `) || !strings.Contains(err.Error(), `eth0: overhead 10 of linklayer "pppoa-vcmux" is less than the 14 bytes of header`) {
		t.Errorf("refusal: %v", err)
	}
}
