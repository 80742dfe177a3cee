// Package tc makes a [hierarchy.Tree] real and reads it back: it is the only
// package that speaks to the kernel's traffic control.
//
// [Open] opens a connection to one network namespace, [Conn.Device] names one
// of its interfaces. A [Device] reads the state of the interface
// ([Device.Read]), carries out steps of a plan ([Device.Do]), fills what a
// policy leaves open ([Device.Settle]), counts ([Device.Stats]) and holds the
// classifier that package cgroup brings ([Device.AttachEgress]).
//
// # What is ours
//
// Of an interface vifshape owns the HTB qdisc with handle 71f: at its root and
// what hangs below it, one filter at the egress hook (preference 1, handle
// 0x71f) and one on the root qdisc. Everything else belongs to somebody else and
// is left alone; a root qdisc that is neither ours nor the kernel's own is
// replaced only when the plan says so.
//
// # Units
//
// The model's: bits per second, bytes, nanoseconds. The kernel keeps rates in
// bytes per second and bursts in ticks of 64 ns of rate. [Device.Settle] rounds a
// tree to what the kernel will show, so that both compare with ==.
//
// # Needs
//
// Linux 5.4 or later. Reading needs no privileges; everything that changes
// something needs CAP_NET_ADMIN in the user namespace that owns the network
// namespace. [Device.Settle] does without, but knows better with it which qdiscs
// the kernel has. A connection is for one goroutine at a time.
package tc
