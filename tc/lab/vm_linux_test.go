package lab_test

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVM repeats the tests on other kernels: what is measured with this package
// there is measured well.
func TestVM(t *testing.T) {
	vm.Matrix(t,
		vm.Guest{Kernel: vm.UML()},
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64")},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64")},
	)
}
