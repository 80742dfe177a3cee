package adopt_test

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVM imports trees from other kernels, which have the kinds of qdiscs and filters that
// the kernel at hand may lack.
func TestVM(t *testing.T) {
	vm.Matrix(t,
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64"), Not: map[string]string{
			"^TestKernelFireQOS$":      "it is a program of bash and others that are not there; its tree is of kinds that all kernels have",
			"^TestKernelWondershaper$": "it is a script, which is not there; TestKernelTrees has what it makes",
		}},
	)
}
