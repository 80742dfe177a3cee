package main

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVM repeats the tests of the program on other kernels.
func TestVM(t *testing.T) {
	not := map[string]string{
		"^TestKernelChangeOne$":    "it builds the program with the go command",
		"^TestKernelEscape$":       "it starts hundreds of processes, which takes minutes on a processor that is emulated",
		"^TestKernelDemo$":         "its shares within 5 % take a processor that is not emulated",
		"^TestKernelRealPrograms$": "its shares within 5 % take a processor that is not emulated",
	}
	vm.Matrix(t,
		vm.Guest{Kernel: vm.UML(), Not: not},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.Hybrid, Not: not},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.V1, Not: not},
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64"), Not: not},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64"), Not: not},
	)
}
