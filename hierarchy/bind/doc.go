// Package bind has the words for what is put into a branch and how: a [Binding] as a
// policy writes it, with its [Pattern]; the [Target] that it comes to on a machine; the
// [Way] by which packets get their class; and the [Delegate], who may start programs in
// a branch.
//
// Like all of the model it does no input or output, needs only the standard library,
// and its values may be read by several goroutines at once.
package bind
