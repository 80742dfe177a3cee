package survey

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVM reads filters of another kernel, which has kinds that the kernel at hand may lack.
func TestVM(t *testing.T) {
	vm.Matrix(t, vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64")})
}
