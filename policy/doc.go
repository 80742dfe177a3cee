// Package policy reads policy files: TOML whose tables are the tree of
// branches.
//
//	version = 1
//
//	[interface.eth0]
//	rate = "940mbit"
//
//	[interface.eth0.web]
//	rate = "50%"
//	bind = ["unit:nginx.service"]
//
// A table below [interface] is a network interface, or all those that a
// [hierarchy.Selector] fits, a table below that is a branch, and so on down. The
// order of the file is the order of the trees and of the branches in them.
//
// At the top stand version, which must be 1, and binding, which is "auto", "bpf",
// "nft" or "net_cls". An interface has rate, ceil, burst, cburst, overhead, mpu,
// linklayer, mtu, replace and ingress; a branch has rate, ceil, prio, burst, cburst,
// quantum, qdisc, bind, match, delegate and ingress. No branch can have the name of a key. Keys are
// case-sensitive. Bandwidths, percentages and sizes are strings with a unit, as
// package hierarchy reads them; a qdisc is a kind or a table with kind and
// parameters.
//
// Bind is a list of what goes into the branch: "unit:nginx.service",
// "slice:build.slice", "cgroup:/kubepods.slice", "user:backup", "link:veth1",
// "container:shop". Units, slices and the parts of a cgroup's path may be patterns, as
// in "unit:worker@*.service"; [bind.Binding] says who gets what several name.
//
// Match is a list of tables, between brackets or each below [[interface.eth0.web.match]],
// of which any suffices for a packet; all keys of one must hold, and of a key one value:
// from, to and host (addresses and prefixes), mac, proto, port, sport and dport (numbers,
// ranges, names), dscp, mark ("0x10/0xff") and vlan. [match.Match] says what they mean,
// package match which of several wins, and [hierarchy.Branch.Decide] where a packet
// gets by them: a match refines what its parent carries.
//
// linklayer names the kind of line that the interface leads to, one of
// [hierarchy.Layers]; overhead, the bytes that the line sends besides each IP
// packet, and mpu, the least that it sends for one, stand for themselves or take the
// place of those of the line's kind.
//
// ingress is what an interface may receive, and what of that a branch is guaranteed: a
// bandwidth, of a branch also a percentage of the parent's, or a table with rate, ceil,
// burst and cburst and in a branch prio, quantum and qdisc too, in an interface flows: how
// many flows are known at once by which packets are told apart. The branches, bindings
// and what is said of the line are the same in both directions.
//
// delegate lists users, by name or as "uid:1000", who may start programs in the branch
// and below and divide it further while it is in force, without being root.
//
// [Parse] reports every mistake of a file at once, each with line, column and
// the way on. Only a mistake in the TOML itself hides what follows it. A policy
// with one mistake gives no trees.
//
// The package does no input or output but reading from the reader it is given,
// needs no privileges, and builds everywhere. Its functions may be called
// concurrently.
package policy
