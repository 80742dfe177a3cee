package latency

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVM repeats the tests on kernels that give other reasons for what they drop, and let
// programs follow the parts of packets, which the kernel at hand may not.
func TestVM(t *testing.T) {
	vm.Matrix(t,
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64")},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64")},
	)
}
