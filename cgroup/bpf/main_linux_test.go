package bpf

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

func TestMain(m *testing.M) { tctest.Main(m, nil) }

// TestVM repeats the tests on other kernels, one without BTF among them. They need no
// cgroups, of whatever layout.
func TestVM(t *testing.T) {
	vm.Matrix(t,
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64"), Not: map[string]string{
			"^TestKernelMatchReceived$": "user-mode Linux of the same version tries it, in a quarter of the time",
		}},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64")},
		vm.Guest{Kernel: vm.UML(), Lacks: []string{"BTF"}},
	)
}
