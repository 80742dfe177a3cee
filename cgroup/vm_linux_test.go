package cgroup_test

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVM repeats the tests on Linux 6.1, which has the kernel's own classifier for
// net_cls, with each layout of cgroups, and on 6.12.
func TestVM(t *testing.T) {
	vm.Matrix(t,
		vm.Guest{Kernel: vm.UML()},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.Hybrid},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.V1},
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64")},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64"), Cgroup: vm.Hybrid},
	)
}
