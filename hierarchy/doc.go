// Package hierarchy is the model of vifshape: what a tree of branches is, what
// it should become, and what has to be done to get there.
//
// A tree stands on a [Port]: a network device, and the direction in which packets go
// through it. Each of its nodes, a branch, is one class of the kernel's HTB queueing
// discipline; a branch without children, a leaf, also has a queueing discipline of its
// own. The package knows
//
//   - the units: [Bandwidth] in bits per second, [Size] in bytes, [ClassID],
//     [Path];
//   - the tree as it is written in a policy, [Spec], and with every open value
//     worked out and checked, [Tree], which [Resolve] makes of it, one for sending
//     and, where the policy has ingress, one of the same branches for receiving;
//   - which leaf carries a packet that somebody describes, [Branch.Decide];
//   - the ideal allocation of bandwidth for a given demand, [Tree.Ideal];
//   - the state of one device as plain data, [State], with what stands on each of
//     its ports, the difference of two states as one ordered [Plan], and
//     [Kernel.Apply], which carries a plan out over each [Part] of it, reads
//     back, compares, and takes everything back to where it started when
//     something fails.
//
// Nothing here does input or output, nothing depends on the machine: the same
// specification gives the same tree everywhere. It needs no privileges and only
// the standard library. Values are not safe for concurrent modification.
//
// What HTB does is cited as function, file and version of Linux, for example
// "htb_change_class, net/sched/sch_htb.c, v6.12".
package hierarchy
