package cgroup

import (
	"context"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// choice is what a way of binding consists of.
type choice struct {
	name       bind.Way
	find       func() (*cgroupfs.Tree, error) // the hierarchy of its cgroups, nil where it is not mounted
	classifier way.Classifier
	store      way.Store
	sockets    openSockets
	unseen     bool // packets do not show the class that they get
}

// openSockets knows how a way treats the sockets that are open.
type openSockets interface {
	// carrier is the best that there is to bring the class of a cgroup to open sockets, nil
	// where they follow by themselves.
	carrier(of way.Key) (home.Carrier, error)
	// decider finds the classes of open sockets of some processes as the classifier does, 0
	// where it cannot be told.
	decider(ctx context.Context, pids []int, sockets map[uint64]socket.Diag) (func(socket.Diag) (hierarchy.ClassID, error), error)
}
