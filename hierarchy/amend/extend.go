package amend

import (
	"fmt"
	"slices"

	"github.com/vifshape/vifshape/hierarchy"
)

// Extended is a policy's interface with branches added.
type Extended struct {
	Tree    *hierarchy.Tree
	Spec    *hierarchy.Spec // that it is made of, as a policy would have it
	Kept    []Branch        // those that are in it
	Dropped []Dropped
}

// ProblemError is what is wrong with a tree to which branches were added.
type ProblemError struct{ hierarchy.Problem }

// Error is the problem with the path of its branch.
func (e ProblemError) Error() string { return fmt.Sprintf("%s: %s", e.Path, e.Text) }

// UnfitError says that a branch was added for which the policy has no room now.
type UnfitError struct {
	Branch Branch
	err    error
}

// Error names the branch, and what is wrong with a tree that has it.
func (e UnfitError) Error() string {
	return fmt.Sprintf("%s, %s, does not fit into this policy: %v", e.Branch.Path, e.Branch.Origin(), e.err)
}

// Remedy is the way on.
func (e UnfitError) Remedy() string {
	take := "remove " + string(e.Branch.Path)
	if e.Branch.Limit != "" {
		take = "unlimit " + e.Branch.Limit
	}
	return fmt.Sprintf("`vifshape %s` takes it away; or leave room for it in the policy", take)
}

// Unwrap is what is wrong with a tree that has the branch.
func (e UnfitError) Unwrap() error { return e.err }

// Extend adds branches, parents first, to what a policy says of an interface, which is
// not changed. It goes the way of a policy, so that nothing can be added that could not
// be written there: what is wrong is a [ProblemError]. Limits come last.
func Extend(policy *hierarchy.Spec, kinds []hierarchy.Kind, added []Branch) (Extended, error) {
	s, x := *policy, Extended{}
	if len(added) > 0 {
		s.BranchSpec = *clone(&s.BranchSpec)
	}
	var limits []Branch
	for _, b := range added {
		if b.Limit != "" {
			limits = append(limits, b)
		} else if why := b.addTo(&s); why != "" {
			x.Dropped = append(x.Dropped, Dropped{b, why})
		} else {
			x.Kept = append(x.Kept, b)
		}
	}
	if err := x.limit(&s, kinds, limits); err != nil {
		return Extended{}, err
	}
	var err error
	x.Spec = &s
	x.Tree, err = resolve(&s, kinds)
	return x, err
}

// resolve makes the tree of a specification, and the first thing that is wrong with it an
// error.
func resolve(s *hierarchy.Spec, kinds []hierarchy.Kind) (*hierarchy.Tree, error) {
	tree, problems := hierarchy.Resolve(s, kinds)
	if i := slices.IndexFunc(problems, func(p hierarchy.Problem) bool { return !p.Warning }); i >= 0 {
		return nil, ProblemError{problems[i]}
	}
	return tree, nil
}

// clone copies what adding may change.
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
			return x, UnfitError{added[i], err}
		}
	}
	return x, err
}
