package tc_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVM repeats the tests on other kernels, which have what the kernel at hand
// may lack. Layouts of cgroups matter to the cgroup classifier alone.
func TestVM(t *testing.T) {
	long := map[string]string{"^TestKernelFirstApply$": "user-mode Linux tries it, in an eighth of the time"}
	vm.Matrix(t,
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64"), Not: long},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64"), Not: long},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.V1, Lacks: []string{"qdisc fq_pie"}},
		vm.Guest{Kernel: vm.VirtualTime(), Tests: "^TestKernelKind"},
	)
}

// TestVMReceiverLacks: a kernel without IFBs, which the others have.
func TestVMReceiverLacks(t *testing.T) {
	t.Parallel()
	kernel := vm.Debian("linux-image-cloud-amd64")
	vm.RequireKernel(t, kernel)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	status, err := vm.Boot(t.Context(), vm.Config{
		Kernel: kernel, Program: self, Args: []string{"-test.v", "-test.run=^TestKernel(ReceiverLacks|HasIFB)$"},
		Env: []string{"VIFSHAPE_NO_SKIP=1"}, Without: []string{"ifb"}, Output: &out, Timeout: 3 * time.Minute,
	})
	if t.Log(out.String()); err != nil || status != 0 || strings.Count(out.String(), "--- PASS: ") != 2 {
		t.Errorf("status %d, %v", status, err)
	}
}
