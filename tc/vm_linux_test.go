package tc_test

import (
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// User-mode Linux 6.1 has what the kernel at hand may lack: sfq, fq_codel and the
// cgroup classifier. All that is timed stays at home.
func TestVMKernel(t *testing.T) {
	vm.Run(t, vm.UML(), vm.V2, "", "-test.run=^TestKernel(Kind.*|CgroupFilter|Apply|BatchError|Contract|Egress|EgressForeign|ForeignQdiscs|ForeignRoot|Gone|Lacks|NoDevice|Roots|SettleTouchesNothing|Unprivileged)$")
}
