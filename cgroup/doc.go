// Package cgroup decides which process belongs to which branch: a [Binder] puts the
// classifier on an interface and binds control groups, users and interfaces to classes.
// It chooses among the ways of binding, which lie below (bpf, nft, netcls) and are all
// alike to it (way). What needs no Binder lies there, too: cgroups as files (cgroupfs),
// those of branches (home), what bindings name (resolve), open sockets (socket),
// interfaces (iface), programs that cannot leave (confine), and proof (prove).
//
// # Ways
//
// Where a packet gets its class from is one of these ways, best first:
//
//   - bpf: a tc BPF program at the interface's egress hook finds the deepest
//     bound cgroup v2 above the packet's socket, else the socket's user, and
//     writes the class to skb->priority, where HTB looks before any filter. It
//     writes always, so that SO_PRIORITY, raw and packet sockets do not help,
//     root's included. Needs Linux 5.10 and a cgroup v2 hierarchy, alone or
//     beside v1.
//   - nft: where BPF is refused, rules of nf_tables do the same, at the output
//     hook of IP and at the egress hook of the device. Needs Linux 5.16 with
//     CONFIG_NETFILTER_EGRESS and CONFIG_NFT_SOCKET, and to be outside cgroup
//     namespaces.
//   - net_cls: the cgroup v1 controller net_cls tags processes with the class;
//     a smaller program at the same hook writes the tag.
//   - net_cls+nft: the same tags, written by rules of nf_tables at the egress
//     hook of the device.
//   - cls_cgroup: the same tags and the kernel's own cgroup classifier on the
//     root qdisc.
//
// What each does not hold is in its [WayReport].
//
// With cgroup v2 a socket belongs to the cgroup in which it was born, wherever
// its process moves afterwards; with net_cls it follows the process. With bpf an
// accepted TCP connection belongs to the bound process that serves it, whoever opened
// the listener (systemd) or accepted it (inetd, sshd before it became the user): the
// classifier sees who sends when a process has TCP send something new. What the
// kernel sends before that, as the SYN-ACK, is of the listener's branch; so is all of
// a connection through a tunnel that the shaped interface carries. Who is bound by
// nothing changes nothing, so that a connection which is passed on stays in its
// branch. This takes a kernel that describes its types (BTF). Below Linux
// 5.15 a socket with a net_cls tag has no v2 cgroup for BPF
// (commit 8520e224f547), so the two must not be mixed there.
//
// Some packets are the rest's by nature: those without a socket (resets and
// ICMP of the kernel, forwarded packets that came in by an interface that is not
// bound) and those of a socket in TIME_WAIT.
//
// # Interfaces and containers
//
// With bpf an interface can be bound too: what it brings in and the shaped interface
// sends on has no socket any more. When the bound one is a port of a bridge, and the
// bridge's packets are routed, they look as if the bridge had brought them in. So
// that port gets a program of its own at its ingress hook, which sets the upper byte
// of the packet's firewall mark to 0x71 and the rest of it to 0, and puts the port's
// index beside it. The classifier believes that of forwarded packets without a socket
// only; local processes have sockets, and the kernel clears the mark of what comes
// from another network namespace. Where rules of netfilter change the upper byte, the
// packet is of the bridge's branch, or the rest's; what they do with other bits, as
// those of Kubernetes do, is none of its business. An interface that lies on the shaped
// one (macvlan, VLAN) in another network namespace is to be kept from whoever must not
// choose a branch: of what is forwarded there and leaves by it, index and mark are as
// root of that namespace likes.
//
// With a cgroup, however it is named, the near ends are bound of the veth and netkit
// pairs that lead to the network namespaces of the processes in it and below it: a slice
// of pods has their interfaces. One interface carries all that a namespace sends, so it
// is of the branch to which the oldest process there is bound: who enters later, from a
// session or by nsenter, takes nothing along. What is not held so, [resolve.Resolution] has in
// Outside: of other branches in the namespace, with another way than bpf, or where
// another namespace lies between. What leaves by an interface upon the shaped one
// (macvlan) has its socket, and needs none of this.
//
// A container is its cgroup. It is found by what the runtimes keep on disk and call
// their cgroups; none of them is asked.
//
// # State
//
// Nothing is pinned and no process stays behind. A later [Binder] finds the maps
// again through the program on the hook, which keeps them alive, and rules of
// nf_tables in the tables named vifshape, which it decodes. Where net_cls was
// not mounted it is, with the source "vifshape", until nothing is in it any more.
//
// Changes need CAP_SYS_ADMIN (BPF maps by id, mounts) and CAP_NET_ADMIN; Linux
// only. A Binder is not for concurrent use.
package cgroup
