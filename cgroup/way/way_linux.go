package way

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Version counts the layouts and meanings of what classifiers go by: maps and programs
// (cgroup/bpf/classify.bpf.c), rules and tags.
const Version = 4

// Classifier is one place on an interface where packets can get their class.
type Classifier interface {
	// Probe says why the classifier of a way cannot be had, and that it is there already.
	// It changes nothing on the interface.
	Probe(w bind.Way) (on bool, err error)
	// Read finds the classifier that is there: of which way, none for none, and of which
	// version, 0 for one that is not as this program makes it.
	Read() (w bind.Way, version uint32, err error)
	// Attach puts one there, in place of one of another version or way with no packet
	// between them. What fill puts into the way's store is in force with it, from its
	// first packet. Over says that packets have a class already.
	Attach(w bind.Way, version uint32, over bool, fill func()) error
	// Detach takes away what Read found or Attach put there.
	Detach() error
	// Before lists the programs that see packets before it does, and may keep them from
	// it, on the interface that has an index.
	Before(index uint32) ([]Program, error)
}

// Store holds what is bound for the classifier that goes by it.
type Store interface {
	// Holds says why targets of a kind cannot be bound, nil when they can.
	Holds(k bind.TargetKind) error
	// Get finds a binding that is in force.
	Get(k Key) (class hierarchy.ClassID, bound bool, err error)
	// Put binds: at once, or with the classifier that is attached next where there is none
	// of this version.
	Put(k Key, class hierarchy.ClassID) error
	// Remove takes a binding back. None is no error.
	Remove(k Key) error
	// All calls a function for every binding that is in force, in any order.
	All(ctx context.Context, fn func(Key, hierarchy.ClassID) error) error
	// Flush brings what was changed into force where that was not so at once, for open
	// sockets too, and says which of them could not be brought along.
	Flush() (left []string, err error)
	// Clear takes away what stays when the classifier has gone.
	Clear() error
}

// Key is a target as the kernel knows it.
type Key struct {
	Kind  bind.TargetKind // TargetCgroup, TargetUser or TargetLink
	ID    uint64          // of a cgroup, user or interface
	Level uint32          // of a cgroup, below the root; 0 where that is not known
	Path  string          // of a cgroup, empty where that is not known
	Fresh bool            // nobody has been in it yet
	Used  func() bool     // whether processes with sockets may be in it already, nil: no
}

// Program is a program of somebody else's.
type Program struct {
	ID   uint32
	Name string // empty where this process may not see it
}

// String is "id 12, cil_to_netdev".
func (p Program) String() string {
	if p.Name == "" {
		return fmt.Sprintf("id %d", p.ID)
	}
	return fmt.Sprintf("id %d, %s", p.ID, p.Name)
}

// Stays is added to a class by which something is bound that is to stay in it whatever the
// tree's matches say: STAYS in bpf/class.h. Only the way bpf has it.
const Stays hierarchy.ClassID = 1 << 31

// Rest is the class of what is bound by nothing.
var Rest = hierarchy.ID(hierarchy.RestMinor)

var (
	// ErrLinks: interfaces cannot be bound in this way.
	ErrLinks = fmt.Errorf("interfaces can be bound with BPF only, not with nf_tables or net_cls: %w", caps.ErrNotSupported)
	// ErrOther: the classifier is another version's.
	ErrOther = errors.New("it is another version's: apply the policy again")
)

// Known refuses a version that this program does not make.
func Known(v uint32) error {
	if v != Version {
		return fmt.Errorf("version %d of it is not known here, only %d", v, Version)
	}
	return nil
}

// WaitForReaders returns when every packet that was being classified is: after a grace period
// of RCU. It takes CAP_BPF, or CAP_NET_RAW, where the kernel does not wait by membarrier: where
// processors run without a tick (nohz_full), or it was built without that
// (kernel/sched/membarrier.c, v6.12).
func WaitForReaders() error {
	const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL
	_, _, e := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	if e == 0 {
		return nil
	}
	errs := []error{e}
	for _, wait := range []func() error{waitByMap, waitBySocket} {
		err := wait()
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("wait for the classifier's readers: %w", errors.Join(errs...))
}

// waitByMap has a map of maps changed, for which the kernel waits for all programs
// (maybe_wait_bpf_programs, kernel/bpf/syscall.c, v5.10 and v6.12).
func waitByMap() error {
	spec := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	inner, err := ebpf.NewMap(spec)
	if err != nil {
		return err
	}
	defer inner.Close()
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: spec})
	if err != nil {
		return err
	}
	defer outer.Close()
	return outer.Put(uint32(0), inner)
}

// waitBySocket closes a packet socket, for which the kernel waits for all who may see it
// (synchronize_net in packet_release, net/packet/af_packet.c, v5.10 and v6.12).
func waitBySocket() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
