package hierarchy

import "context"

// Part is one side of the kernel that states are read from and steps are done
// on. Package tc implements it for qdiscs and classes, package cgroup for the
// classifier and its bindings.
type Part interface {
	// Read fills in the fields of s that are this part's.
	Read(ctx context.Context, s *State) error
	// Do carries out steps in order and returns how many of them took effect.
	// It stops at the first that fails.
	Do(ctx context.Context, steps []Step) (done int, err error)
}
