package cgroup

import (
	"errors"

	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Unguard takes away the programs against sockets past the queues that the bindings of an
// interface have left on cgroups, under a name that it has no more or from before it went:
// the kernel takes away no more than what is attached to the interface. Targets that are no
// cgroups have none. It takes CAP_SYS_ADMIN and CAP_BPF, and where no such program can be
// it does nothing.
func Unguard(netNS, iface string, targets []bind.Target) error {
	var errs []error
	var t *cgroupfs.Tree
	g := bpf.NewGuard(netNS, iface)
	for _, target := range targets {
		if target.Kind != bind.TargetCgroup {
			continue
		}
		if t == nil {
			var err error
			if t, err = cgroupfs.FindV2(); errors.Is(err, cgroupfs.ErrNoCgroup2) {
				return nil
			} else if err != nil {
				return err
			}
			defer t.Close()
		}
		errs = append(errs, g.Take(t, target.Name))
	}
	return errors.Join(append(errs, g.Close())...)
}
