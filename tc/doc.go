// Package tc makes a [hierarchy.Tree] real and reads it back.
//
// [Find] names one interface of a connection of package rtnl. A [Device] reads the
// state of the interface ([Device.Read]), carries out steps of a plan ([Device.Do]),
// fills what a policy leaves open ([Device.Settle]) and counts ([Device.Stats]). Its
// [Receiver] does the same for what the interface receives. The classifier that package
// cgroup brings is held by package hook.
//
// # What is ours
//
// Of an interface vifshape owns the HTB qdisc with handle 71f: at its root and
// what hangs below it, one filter at the egress hook (preference 1, handle
// 0x71f) and one on the root qdisc; and, for what the interface receives, an IFB with
// such a root. Everything else belongs to somebody else and is left alone; a root
// qdisc that is neither ours nor the kernel's own is replaced only when the plan
// says so.
//
// # Units
//
// The model's: bits per second, bytes, nanoseconds. The kernel keeps rates in
// bytes per second and bursts in ticks of 64 ns of rate. [Device.Settle] rounds a
// tree to what the kernel will show, so that both compare with ==.
//
// # How exact it is
//
// Measured in virtual time, in which packets wait only for each other, with
// bursts, quanta and queues left to [Device.Settle] (TestVirtualShares,
// TestVirtualRates and TestVirtualLatency print the tables):
//
//	one branch, 64 kbit/s to 400 Gbit/s        within 1 % of its rate
//	guarantees, priorities, ceilings           within 1 % of the ideal
//	                                           (ceilings of borrowers: 5 %)
//	borrowing, from one branch at a time       within 3 %
//	borrowing from several branches in turns   within 8 %
//	small flow in a busy branch of 10 Mbit/s   p99 8 ms with fq_codel, 75 ms with bfifo,
//	                                           which must hold a packet of 64 KiB,
//	                                           60 to 250 ms with sfq, which counts packets, large or not
//	small flow in the branch beside it         under 0.2 ms
//
// The ideal is that of [hierarchy.Tree.Ideal], for windows of 10 s and more; a
// round over all that borrow takes up to a second. What HTB itself cannot
// do better: a branch of which part is lent while the branch above it lends too
// gets less of what the upper one lends. With quanta in proportion to the rates
// leaves directly below the upper one end up to 9 % above the ideal; larger quanta
// for those further down (see quanta) bring that to about half where all are busy.
// How much it is depends on who is idle: in the worst case, one busy leaf below a
// branch that lends three times as much as the upper one, that leaf got a sixth
// (TCP) to a half (UDP) of its part of what the upper one lends, without those larger
// quanta. Guarantees are not touched by any of it.
//
// A changed prio holds for a leaf from when its queue is next empty: until then HTB
// serves it where it was (htb_activate, net/sched/sch_htb.c, v6.12).
//
// A leaf whose packets are larger than its quantum borrows more than its share, for
// HTB lets it send one at each turn; one whose queue is shorter than its quantum
// borrows less. Ten leaves that borrow ten times their guarantee each, with one TCP
// connection in each, were up to 30 % apart from the ideal; with datagrams 0.2 %.
//
// # Needs
//
// Linux 5.10 or later. Reading needs no privileges; everything that changes
// something needs CAP_NET_ADMIN in the user namespace that owns the network
// namespace. [Device.Settle] does without, but knows better with it which qdiscs
// the kernel has. A connection is for one goroutine at a time.
package tc
