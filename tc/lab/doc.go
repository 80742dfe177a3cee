// Package lab makes throw-away networks: network namespaces joined by veth
// pairs, with traffic to send through them and far ends that count what
// arrives. The demo command and every test that needs packets are built on it.
// It speaks netlink itself and needs no other program.
//
// Linux only, kernel 5.10 or later. Making a namespace needs root
// (CAP_SYS_ADMIN, and CAP_NET_ADMIN inside it); sending and counting do not.
//
// Nothing that it makes outlives its Close or the process, except what
// [NetNS.Keep] was asked to keep. Types are safe for use by several goroutines
// unless they say otherwise.
package lab
