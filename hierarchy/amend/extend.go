package amend

import (
	"fmt"
	"slices"

	"github.com/vifshape/vifshape/hierarchy"
)

// Extended is a policy's interface with branches added.
type Extended struct {
	Tree    *hierarchy.Tree
	Kept    []Branch // those that are in it
	Dropped []Dropped
}

// ProblemError is what is wrong with a tree to which branches were added.
type ProblemError struct{ hierarchy.Problem }

// Error is the problem with the path of its branch.
func (e ProblemError) Error() string { return fmt.Sprintf("%s: %s", e.Path, e.Text) }

// UnfitError says that a branch was added for which the policy has no room now.
type UnfitError struct {
	Path hierarchy.Path // of the branch
	err  error
}

// Error names the branch, and what is wrong with a tree that has it.
func (e UnfitError) Error() string {
	return fmt.Sprintf("%s was added while an earlier policy was in force and does not fit into this one: %v", e.Path, e.err)
}

// Unwrap is what is wrong with a tree that has the branch.
func (e UnfitError) Unwrap() error { return e.err }

// Extend adds branches, parents first, to what a policy says of an interface, which is
// not changed. It goes the way of a policy, so that nothing can be added that could not
// be written there: what is wrong is a [ProblemError].
func Extend(policy *hierarchy.Spec, kinds []hierarchy.Kind, added []Branch) (Extended, error) {
	s, x := *policy, Extended{}
	if len(added) > 0 {
		s.BranchSpec = *clone(&s.BranchSpec)
	}
	for _, b := range added {
		if why := b.addTo(&s); why != "" {
			x.Dropped = append(x.Dropped, Dropped{b, why})
			continue
		}
		x.Kept = append(x.Kept, b)
	}
	tree, problems := hierarchy.Resolve(&s, kinds)
	if i := slices.IndexFunc(problems, func(p hierarchy.Problem) bool { return !p.Warning }); i >= 0 {
		return Extended{}, ProblemError{problems[i]}
	}
	x.Tree = tree
	return x, nil
}

// clone copies what addTo may change.
func clone(b *hierarchy.BranchSpec) *hierarchy.BranchSpec {
	c := *b
	c.Children = make([]*hierarchy.BranchSpec, len(b.Children))
	for i, x := range b.Children {
		c.Children[i] = clone(x)
	}
	return &c
}

// Keep is [Extend] for a policy in whose predecessor the branches were: the first that
// it has no room for is an [UnfitError].
func Keep(policy *hierarchy.Spec, kinds []hierarchy.Kind, added []Branch) (Extended, error) {
	x, err := Extend(policy, kinds, added)
	if err == nil {
		return x, nil
	}
	for i := range added {
		if _, err := Extend(policy, kinds, added[:i+1]); err != nil {
			return x, UnfitError{added[i].Path, err}
		}
	}
	return x, err
}
