package cgroup_test

import (
	"maps"
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

const (
	noNFT = "nf_tables"
	noTCX = "TCX (Linux 6.6)"
	noBTF = "BTF"
	noV2  = "a mounted cgroup v2 hierarchy"
	noMP  = "MPTCP"
)

// matchedEdit is the test of matches that change while packets come.
const matchedEdit = "^TestKernelMatchedEdit$"

// onV1 is what guests with cgroup v2 leave out.
var onV1 = map[string]string{"^TestKernelNotMounted$": "it is for a machine with cgroup v1 alone"}

// TestVM repeats the tests on Linux 6.1 and 6.12, which have the kernel's own classifier
// for net_cls, but for what takes long there: on an emulated processor that is five times
// what user-mode Linux takes for it.
func TestVM(t *testing.T) {
	const (
		uml    = "user-mode Linux of the same version tries it, in a fifth of the time"
		here   = "this machine's kernel tries it"
		others = "Linux 6.1 and this machine's try it, between which nothing of it has changed"
		long   = "^TestKernel(Census|ContainerHostile|ContainerNames|Exec|MatchedEdit|ResolveInterrupted|SpacesMany|SpacesSaid|SpacesWhose|UnderLoad)$"
		// ofWays are tests that take long by each way of binding.
		ofWays = "AttachFull|AttachTree|AttachUnderLoad|BoundHome|CensusAttached|CensusElsewhere|FoundAgain|Gone|Homes|Moved|Order|Rebind|" +
			"ReceiveFlooded|ReceivePretended|ReceiveResized|ReceiveShort|ReceiveSwitched|TimeWait|WayUnderLoad"
	)
	on61 := map[string]string{
		long: uml,
		"^TestKernel(Classes|" + ofWays + ")$/^(bpf|net_cls|cls_cgroup)$":            uml,
		"^TestKernel(AttachUnderLoad|ReceiveSwitched|ServedUnderLoad|WayUnderLoad)$": here,
	}
	on612 := map[string]string{
		long:                           others,
		"^TestKernel(" + ofWays + ")$": others,
		"^TestKernel(Adopt|AdoptByNew|Container|Headless|Hidden|ManyRules|MatchedHost|MatchedUntold|Resolve|RulesRead|Served|ServedRebound|ServedUnderLoad)$": others,
		"^TestKernel/^(nft|net_cls\\+nft)$": others,
		// net_prio is not in UML
		"^TestKernelMountsNetCls$": "net_cls is mounted together with net_prio and cannot be alone elsewhere",
	}
	maps.Copy(on61, onV1)
	maps.Copy(on612, onV1)
	vm.Matrix(t,
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64"), Lacks: []string{noTCX}, Not: on61},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64"), Cgroup: vm.Hybrid, Not: on612},
	)
}

// TestVMLayouts repeats them with each layout of cgroups.
func TestVMLayouts(t *testing.T) {
	onUML := map[string]string{"^TestKernelConfined$": "without BTF, the kernel refuses with other words"}
	maps.Copy(onUML, onV1)
	const alike = "to matches layouts do not matter"
	onHybrid := maps.Clone(onUML)
	onHybrid[matchedEdit] = alike
	vm.Matrix(t,
		vm.Guest{Kernel: vm.UML(), Lacks: []string{noNFT, noTCX, noBTF, noMP}, Not: onUML},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.Hybrid, Lacks: []string{noNFT, noTCX, noBTF, noMP}, Not: onHybrid},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.V1, Lacks: []string{noNFT, noTCX, noBTF, noMP, noV2}, Not: map[string]string{
			matchedEdit:                alike,
			"^TestKernelUnprivileged$": "the words it holds are those of a machine with cgroup v2",
		}},
	)
}
