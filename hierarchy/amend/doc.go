// Package amend lays over a policy what was asked for while it was in force: branches
// that were added. It makes the tree of both together, says what has no place in a
// policy that has changed since, and what users may add where a branch is theirs.
//
// Like all of the model it does no input or output and needs only the standard
// library.
package amend
