// Package foreign reads what others have made on an interface that concerns a tree there,
// and puts back the root qdisc that a tree took the place of.
package foreign
