package shaper

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// WithLoopback calls f with the loopback interface of a network namespace of its own, where
// the kernel can be asked by trying: nothing changes but that modules are loaded. It
// needs CAP_SYS_ADMIN, and asking CAP_NET_ADMIN.
func WithLoopback(f func(*rtnl.Conn, *tc.Device) error) error {
	ns, err := lab.NewLoopback()
	if err != nil {
		return fmt.Errorf("make a network namespace to ask the kernel in: %w", err)
	}
	defer ns.Close()
	c, err := rtnl.Open(rtnl.Config{NetNS: ns.FD()})
	if err != nil {
		return err
	}
	defer c.Close()
	lo, err := tc.Find(c, "lo")
	if err != nil {
		return err
	}
	return f(c, lo)
}

// Classifier is the kind that a way of binding has on the interface; empty: none.
func Classifier(w bind.Way) string {
	switch w {
	case bind.WayBPF, bind.WayNetCls:
		return "bpf"
	case bind.WayClsCgroup:
		return "cgroup"
	}
	return ""
}

// MissingClassifiers says, of "bpf" and "cgroup", what the kernel has not that they
// need. The interface is that of [WithLoopback].
func MissingClassifiers(lo *tc.Device) (map[string]string, error) {
	missing := map[string]string{}
	lacking, err := hook.Of(lo.Interface).Lacks("bpf", "cgroup")
	for _, kind := range lacking {
		missing[kind] = "classifier cls_" + kind
	}
	if errors.Is(err, rtnl.ErrNotSupported) { // no clsact, where the program has its place
		missing["bpf"], err = "qdisc clsact", nil
	}
	return missing, err
}

// Anew has the kernel asked again for what it lacked.
func (m *Machine) Anew() { m.missing = nil }

// lacks says of a way that the kernel has no classifier for it. Nothing is known to
// be missing where the kernel may not be asked.
func (m *Machine) lacks(w bind.Way) error {
	if Classifier(w) == "" {
		return nil
	}
	if m.missing == nil {
		var missing map[string]string
		err := WithLoopback(func(_ *rtnl.Conn, lo *tc.Device) (err error) {
			missing, err = MissingClassifiers(lo)
			return err
		})
		if err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
		if m.missing = missing; missing == nil {
			m.missing = map[string]string{}
		}
	}
	if what := m.missing[Classifier(w)]; what != "" {
		return fmt.Errorf("%s: %w", what, rtnl.ErrNotSupported)
	}
	return nil
}
