// Package vm boots other kernels for tests: a static test binary runs as root
// in a machine of its own, which is gone when the binary ends. The kernels come
// from Debian's packages; they are fetched by apt when they are not there, into
// a folder outside the repository (VIFSHAPE_VM_CACHE, by default vifshape in
// the user's cache directory).
//
// [Run] is for use inside of tests, the command vmrun for "go test -exec", and
// [Boot] is what both are made of. Nothing here needs root, or KVM.
//
// In all machines but those of [Systemd] the binary is alone: what is there besides
// comes from the host or from it. With systemd it is the unit vm-job.service of a small
// Debian that has booted, and it may be run once more after a reboot; [OnSystemd] is
// for tests of that. What came with it, the files of its package's testdata among them,
// is below /vm there, and the folder that it runs in is /vm/job.
package vm
