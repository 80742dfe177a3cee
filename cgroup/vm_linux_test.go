package cgroup_test

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVM repeats the tests on Linux 6.1, which has the kernel's own classifier for
// net_cls, with each layout of cgroups, and on 6.12.
func TestVM(t *testing.T) {
	const noNFT, noTCX, noV2 = "nf_tables", "TCX (Linux 6.6)", "a mounted cgroup v2 hierarchy"
	vm.Matrix(t,
		vm.Guest{Kernel: vm.UML(), Lacks: []string{noNFT, noTCX}},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.Hybrid, Lacks: []string{noNFT, noTCX}},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.V1, Lacks: []string{noNFT, noTCX, noV2}, Not: map[string]string{
			"^TestKernelUnprivileged$": "the words it holds are those of a machine with cgroup v2",
		}},
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64"), Lacks: []string{noTCX}},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64"), Cgroup: vm.Hybrid},
	)
}
