// Package vm boots other kernels for tests: a static test binary runs as root
// in a machine of its own, which is gone when the binary ends. The kernels come
// from Debian's packages; they are fetched by apt when they are not there, into
// a folder outside the repository (VIFSHAPE_VM_CACHE, by default vifshape in
// the user's cache directory).
//
// [Run] is for use inside of tests, the command vmrun for "go test -exec", and
// [Boot] is what both are made of. Nothing here needs root, or KVM.
package vm
