package cgroup_test

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestKernelVM repeats tests of the data path on Linux 6.1, which has the kernel's
// own classifier for net_cls, with each layout of cgroups.
func TestKernelVM(t *testing.T) {
	tctest.Require(t, !testing.Short(), "a run without -short, to boot three machines")
	for layout, tests := range map[vm.Layout]string{
		vm.V2:     "Classes|Programs|Homes|BoundHome|Hidden|NetNSKey|Limited|TimeWait|Resolve|TCX",
		vm.Hybrid: "Classes|NetNSKey|Unprivileged|TCP|Moved|Rebind|FoundAgain|Gone|ChangeOfWay|Refused",
		vm.V1:     "Classes|Homes|BoundHome|NotMounted|MountsNetCls",
	} {
		ways := ""
		if layout == vm.V1 { // BPF has no cgroup v2 to make cgroups in
			ways = "/^(net_cls|cls_cgroup)$"
		}
		t.Run(string(layout), func(t *testing.T) {
			vm.Run(t, vm.UML(), layout, "", "-test.run=^TestKernel("+tests+")$"+ways)
		})
	}
}
