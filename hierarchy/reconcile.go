package hierarchy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Part is one part of a device that states are read from and steps are done on.
// Package tc implements it for a port's qdiscs and classes, package cgroup for the
// classifier and its bindings.
type Part interface {
	// Port is the port that the part is; the zero value for the classifier and its
	// bindings, which are the whole device's.
	Port() Port
	// Read fills in what of s is this part's. It does not know the
	// paths of classes and leaves them empty.
	Read(ctx context.Context, s *State) error
	// Do carries out steps in order and returns how many of them took effect.
	// It stops at the first that fails; the error says which that is, and on
	// which interface or branch.
	Do(ctx context.Context, steps []Step) (done int, err error)
}

// Kernel is one device as its parts see it. It must not be used by two
// goroutines at once, and not by two processes either: the caller holds a lock.
type Kernel struct {
	Device string
	Parts  []Part // one for each port, and one for the classifier and its bindings
	// Names gives the classes that are read their paths. It may be nil.
	Names map[ClassID]Path
}

// undoTime bounds how long going back may take once the caller has given up.
const undoTime = time.Minute

// Read is the state of the device now.
func (k Kernel) Read(ctx context.Context) (State, error) {
	s := State{Device: k.Device}
	for _, part := range k.Parts {
		if err := part.Read(ctx, &s); err != nil {
			return State{}, err
		}
	}
	k.Name(&s)
	return s, nil
}

// Name gives what was read its paths.
func (k Kernel) Name(s *State) {
	for _, p := range s.Ports {
		for i := range p.Classes {
			p.Classes[i].Path = k.Names[p.Classes[i].ID]
		}
		for i := range p.Leaves {
			p.Leaves[i].Path = k.Names[p.Leaves[i].Class]
		}
	}
	for i := range s.Bound {
		s.Bound[i].Path = k.Names[s.Bound[i].Class]
	}
	for i := range s.Matched {
		s.Matched[i].Path = k.Names[s.Matched[i].ID]
	}
}

// Apply carries out the plan that leads from before to want, reads the kernel
// back and compares. When a step fails, when the comparison finds a difference
// or when ctx ends, it goes back to before on every port and returns an
// *ApplyError. Before must have been read from the same kernel.
func (k Kernel) Apply(ctx context.Context, before, want State, plan Plan) error {
	if plan.Empty() {
		return nil
	}
	cause := k.do(ctx, plan.Steps)
	if cause == nil {
		cause = k.verify(ctx, before, want, plan)
	}
	if cause == nil {
		return nil
	}
	failed := &ApplyError{Err: cause}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	// Going back needs no record of what was done: it is the plan from what
	// stands now to what stood before.
	now, err := k.Read(ctx)
	if err == nil {
		err = k.do(ctx, Diff(now, before).Steps)
	}
	failed.Undo = err
	if now, err = k.Read(ctx); err == nil {
		failed.Left = Diff(before, now)
		for _, p := range before.Ports {
			if is := now.On(p.Port).Root; p.Root.Foreign() && !is.Ours() && is != p.Root {
				// No plan brings a foreign qdisc back, so Diff has no step for it.
				failed.Left.Steps = append(failed.Left.Steps, Step{Port: p.Port, Action: Delete, Old: &p.Root})
			}
		}
		if failed.Left.Empty() {
			failed.Undo = nil // whatever complained on the way
		} else if failed.Undo == nil {
			failed.Undo = errors.New("the kernel does not show what was there before")
		}
	} else if failed.Undo == nil {
		failed.Undo = err
	}
	return failed
}

// Rereader is a Part that looks at a few things again for less than it takes to
// read everything.
type Rereader interface {
	// Reread brings s, a state that Read gave, up to date for what the steps
	// have touched since, and for nothing else.
	Reread(ctx context.Context, s *State, steps []Step) error
}

// fewSteps is up to how many steps only what they touched is read back.
const fewSteps = 32

// verify reads back what the plan touched, and everything where that is much or
// where it does not show what was wanted.
func (k Kernel) verify(ctx context.Context, before, want State, plan Plan) error {
	rereads := func(p Part) bool { _, ok := p.(Rereader); return ok }
	if len(plan.Steps) <= fewSteps && slices.ContainsFunc(k.Parts, rereads) {
		now, err := k.reread(ctx, before, plan.Steps)
		if err == nil && Diff(now, want).Empty() {
			return nil
		}
	}
	now, err := k.Read(ctx)
	if err != nil && ctx.Err() != nil { // where the interrupt fell matters to nobody
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	if left := Diff(now, want); !left.Empty() {
		return &MismatchError{left}
	}
	return nil
}

// reread brings a state up to date for what steps have touched, as far as the parts can
// look at less than everything.
func (k Kernel) reread(ctx context.Context, s State, steps []Step) (State, error) {
	s.Ports = slices.Clone(s.Ports)
	for i := range s.Ports {
		p := &s.Ports[i]
		p.Classes, p.Leaves = slices.Clone(p.Classes), slices.Clone(p.Leaves)
	}
	for _, part := range k.Parts {
		err := error(nil)
		if r, ok := part.(Rereader); ok {
			port := part.Port()
			err = r.Reread(ctx, &s, slices.DeleteFunc(slices.Clone(steps), func(x Step) bool { return x.Port != port }))
		} else {
			err = part.Read(ctx, &s)
		}
		if err != nil {
			return State{}, err
		}
	}
	return s, nil
}

// do hands each run of steps to the part that they belong to.
func (k Kernel) do(ctx context.Context, steps []Step) error {
	for len(steps) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		port, n := steps[0].Port, 1
		for n < len(steps) && steps[n].Port == port {
			n++
		}
		at := slices.IndexFunc(k.Parts, func(p Part) bool { return p.Port() == port })
		if at < 0 {
			return fmt.Errorf("%s: there is nobody to %v", k.Device, steps[0])
		}
		if _, err := k.Parts[at].Do(ctx, steps[:n]); err != nil {
			return err
		}
		steps = steps[n:]
	}
	return nil
}

// MismatchError says that the kernel took every step and yet shows something
// else than was asked for.
type MismatchError struct {
	Left Plan // from what the kernel shows to what was wanted
}

// Error names the first differences, and parameters that the kernel passed over.
func (e *MismatchError) Error() string {
	s := "the kernel shows something else than was asked for: " + e.Left.summary()
	if u := e.Left.unknown(); u != nil {
		s += "; it shows nothing of " + strings.Join(u, ", ") + ": leave that out, or use a newer kernel"
	}
	return s
}

// unknown are the parameters of queueing disciplines that are asked for and that
// the kernel shows nothing of. Kernels pass over those that they do not know.
func (p Plan) unknown() (names []string) {
	for _, s := range p.Steps {
		old, had := s.Old.(*Leaf)
		now, has := s.New.(*Leaf)
		if !had || !has || old.Qdisc.Kind != now.Qdisc.Kind || old.Qdisc.Params == nil {
			continue
		}
		for _, x := range now.Qdisc.Params {
			name := x.Name + " of " + now.Qdisc.Kind
			if _, ok := old.Qdisc.Get(x.Name); !ok && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// summary names up to three steps.
func (p Plan) summary() string {
	var s []string
	for i, x := range p.Steps {
		if i == 3 {
			s = append(s, fmt.Sprintf("and %d more", len(p.Steps)-i))
			break
		}
		s = append(s, x.String())
	}
	return strings.Join(s, ", ")
}

// ApplyError says that a plan was not carried out, and what stands now.
type ApplyError struct {
	Err  error // why
	Undo error // why going back failed; nil: everything is as it was before
	Left Plan  // what now differs from before, if that could be read
}

// Error says what failed and what stands.
func (e *ApplyError) Error() string {
	if e.Undo == nil {
		return e.Err.Error() + "; everything is as it was before"
	}
	s := fmt.Sprintf("%v; going back failed as well: %v", e.Err, e.Undo)
	if !e.Left.Empty() {
		s += "; what differs from before: " + e.Left.summary()
	}
	return s
}

// Unwrap is the first cause.
func (e *ApplyError) Unwrap() error { return e.Err }
