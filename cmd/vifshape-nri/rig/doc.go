// Package rig is a node of Kubernetes for tests, without Kubernetes: containerd, runc and the CNI
// plugins in namespaces of their own, an interface that they send by, and a far end that counts
// what arrives by who sent it. Pods are started as a kubelet starts them, by CRI, those of a manifest
// with all that it says of them.
//
// containerd is built from its source the first time, which takes minutes, and kept in the cache
// of package vm; rigfetch does that ahead. runc, the CNI plugins and busybox are Debian's. A test
// that lacks any of it is skipped, by the one rule of package tctest.
//
// Everything that a rig has lies in its namespaces and in cgroups of its own name, and goes with
// the test, also with one that is killed: process 1 of the rig ends when the test does, and
// takes all others along.
package rig
