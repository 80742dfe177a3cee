// Package iface tells of the interfaces of network namespaces: which there are, whose
// ports they are, and where their other ends lie. A namespace is named by a descriptor, 0
// being the caller's.
//
// It changes nothing. Linux only; functions are safe for concurrent use.
package iface
