// Package socket says which sockets are open: by the descriptors of processes, by the
// kernel's tables, and by sock_diag, which knows user, cgroup and tag of each. It
// changes nothing. Linux only; functions are safe for concurrent use.
package socket
