package tc_test

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVM repeats the tests on other kernels, which have what the kernel at hand
// may lack. Layouts of cgroups matter to the cgroup classifier alone.
func TestVM(t *testing.T) {
	vm.Matrix(t,
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64")},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64")},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.V1, Lacks: []string{"qdisc fq_pie"}},
		vm.Guest{Kernel: vm.VirtualTime(), Tests: "^TestKernelKind"},
	)
}
