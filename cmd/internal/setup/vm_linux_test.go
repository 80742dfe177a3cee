package setup

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVM repeats the tests on the oldest kernel: what sockets are open, and in which cgroups,
// is the kernel's to tell. How much gets through to a host is not.
func TestVM(t *testing.T) {
	vm.Matrix(t, vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64"), Not: map[string]string{
		"^TestKernelMeasure": "it asks nothing of the kernel that TestKernelAcknowledged does not",
	}})
}
