package bpf

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
)

// TCX lists the programs at the hook of an interface of this network namespace that
// packets pass in a direction, in the order in which they run. It lists none where that cannot be found out: before Linux
// 6.6, which has no TCX, without privileges, and for an interface that is gone.
func TCX(index uint32, d hierarchy.Direction) ([]way.Program, error) {
	at := ebpf.AttachTCXEgress
	if d == hierarchy.Receive {
		at = ebpf.AttachTCXIngress
	}
	found, err := link.QueryPrograms(link.QueryOptions{Target: int(index), Attach: at})
	switch {
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL), // EINVAL: no such type of attachment
		errors.Is(err, unix.EPERM), errors.Is(err, unix.ENODEV):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look for TCX programs: %w", err)
	}
	var all []way.Program
	for _, x := range found.Programs {
		name, err := programName(x.ID)
		if errors.Is(err, fs.ErrNotExist) {
			continue // detached meanwhile
		}
		if err != nil && !errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("look at TCX program %d: %w", x.ID, err)
		}
		all = append(all, way.Program{ID: uint32(x.ID), Name: name})
	}
	return all, nil
}

func programName(id ebpf.ProgramID) (string, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "", err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "", err
	}
	return info.Name, nil
}
