// Package hook puts classifiers where packets pass: BPF programs at the hooks of an
// interface (clsact) and the kernel's own for net_cls tags at our root qdisc. It takes the
// first preference, and leaves what others have there alone.
package hook
