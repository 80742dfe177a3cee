package cgroup

import (
	"errors"
	"fmt"

	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// A way of binding is a classifier, which gives packets their class, and a store of what
// is bound, by which it goes. Which classifier goes with which store is [Binder]'s
// alone: see [NewBinder].

// classifier is one place on an interface where packets can get their class.
type classifier interface {
	// probe says why the classifier of a way cannot be had, and that it is there already.
	// It changes nothing on the interface.
	probe(w bind.Way) (on bool, err error)
	// read finds the classifier that is there: of which way, none for none, and of which
	// version, 0 for one that is not as this package makes it.
	read() (w bind.Way, version uint32, err error)
	// attach puts one there, in place of one of another version or way with no packet
	// between them. What fill puts into the way's store is in force with it, from its
	// first packet. Over says that packets have a class already.
	attach(w bind.Way, version uint32, over bool, fill func()) error
	// detach takes away what read found or attach put there.
	detach() error
	// before tells what sees packets before it does, and may keep them from it.
	before(index uint32) ([]tcxProgram, error)
}

// store holds what is bound for the classifier that goes by it.
type store interface {
	// holds says why targets of a kind cannot be bound, nil when they can.
	holds(k bind.TargetKind) error
	// get finds a binding that is in force.
	get(k key) (class hierarchy.ClassID, bound bool, err error)
	// put binds: at once, or with the classifier that is attached next where there is none
	// of this version.
	put(k key, class hierarchy.ClassID) error
	// remove takes a binding back. None is no error.
	remove(k key) error
	// all calls a function for every binding that is in force, in any order.
	all(fn func(key, hierarchy.ClassID) error) error
	// flush brings what was changed into force where that was not so at once, for open
	// sockets too.
	flush() error
	// clear takes away what stays when the classifier has gone.
	clear() error
}

// openSockets knows how a way treats the sockets that are open.
type openSockets interface {
	// carrier is the best that there is to bring the class of a cgroup to open sockets, nil
	// where they follow by themselves.
	carrier(of key) (home.Carrier, error)
	// decider finds the classes of open sockets of some processes as the classifier does, 0
	// where it cannot be told.
	decider(pids []int, sockets map[uint64]socket.Diag) (func(socket.Diag) (hierarchy.ClassID, error), error)
}

// key is a target as the kernel knows it.
type key struct {
	kind  bind.TargetKind // TargetCgroup, TargetUser or TargetLink
	id    uint64          // of a cgroup, user or interface
	level uint32          // of a cgroup, below the root; 0 where that is not known
	path  string          // of a cgroup, empty where that is not known
	fresh bool            // nobody has been in it yet
	used  func() bool     // whether processes may be in it already, nil: no
}

// versioned refuses a classifier that this version does not make.
func versioned(v uint32) error {
	if v != version {
		return fmt.Errorf("version %d of it is not known here, only %d", v, version)
	}
	return nil
}

var errOtherVersion = errors.New("it is another version's: apply the policy again")
