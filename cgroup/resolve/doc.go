// Package resolve finds what bindings name on a machine: cgroups, units and slices of
// systemd's, users, containers, interfaces, and the interfaces that lead to the network
// namespaces of bound processes. It reads, and changes nothing.
//
// What names what, and to whom it belongs when several bindings name it, stands at
// [Resolve]. Linux only; functions are safe for concurrent use.
package resolve
