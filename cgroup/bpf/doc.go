// Package bpf binds by a tc program at the egress hook of an interface: by maps of
// cgroups of v2, users and interfaces (bind.WayBPF), or by the tags of net_cls
// (bind.WayNetCls). It has the programs beside that one, too: the [Guard] of cgroups, the
// [Marker] of interfaces that others hide, and the [Tap] that counts what leaves.
//
// Nothing is pinned: maps are found again through the program on the hook, which keeps
// them alive. The programs' source is here; see gen.go. Linux 5.10 and later.
package bpf
