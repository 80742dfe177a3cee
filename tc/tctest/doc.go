// Package tctest holds what the project's tests share: networks of package lab
// with clean-up, temporary cgroups, the one rule for skipping, actors, a search for leftovers, and a reader of what iproute2's tc says. It depends
// on none of the packages it helps to test. Its folder vm boots other kernels.
//
// # Skipping
//
// Every skip of the project goes through [Require], so that a run can be told
// not to skip. With VIFSHAPE_NO_SKIP set a test that would skip fails, unless
// VIFSHAPE_SKIP_OK allows it: a comma-separated list of patterns of test names
// ("TestKernel*") and of parts of reasons ("qdisc cake").
package tctest
