// Package cgroupfs has the cgroups of a machine as files: where a hierarchy is mounted,
// of v2 or of v1 with net_cls, the ids of its cgroups and what is in them; and of
// processes what /proc tells: threads, cgroups, network namespaces.
//
// It reads, and makes, joins and tags single cgroups; what they are for is not known
// here. Linux only. Functions are safe for concurrent use.
package cgroupfs
