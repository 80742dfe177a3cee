// Package netcls binds by the tags of net_cls, a controller of cgroup v1: it keeps them,
// for whatever reads them, and has the kernel's own classifier that does
// (bind.WayClsCgroup). A process has one tag for all interfaces.
package netcls
