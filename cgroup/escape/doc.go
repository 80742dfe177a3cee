// Package escape tries to get out of a branch. Each [Attempt] is one way that a
// program may try: an option of a socket, another kind of socket, another cgroup,
// a change of the tree itself. It runs in a process that was put into the branch,
// with [Perform], and sends a known number of packets, or has the far end send them,
// see [Far]. Where they were counted, by the classes of HTB and at the end of the cable
// that they come to, says what came of it: [Judge] compares that with what the attempt
// declares.
//
// Attempts change what they can: the tree, the cgroups and the classifier of the
// network namespace that they run in. They belong into namespaces that are thrown
// away. What they mount is in a mount namespace of their own.
//
// Linux only. Nothing here needs privileges of its own; what an attempt may do
// depends on those of its process. Functions are safe for concurrent use, except
// Perform and Serve, which take the process over.
package escape
