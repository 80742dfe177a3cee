// Package qdisc has the leaf kinds, one in a file: what a policy may say about each,
// what is chosen where it says nothing, how it goes to the kernel and comes back, and
// how tc would be told. [Kernel] says which of them the kernel at hand has.
package qdisc
