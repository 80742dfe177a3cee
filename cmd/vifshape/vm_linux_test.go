package main

import (
	"maps"
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// byLayout are the tests that go by what hierarchies of cgroups there are, and by what
// user-mode Linux lacks. The others run on Debian's kernel of the same version.
const byLayout = "^TestKernel(AgentRestart|BindLive|Delegate|DoctorFacts|DoctorVerdict|Edits|Escape|LockMissing|Mounts|Nobody|Script|Self|SelfCounts|Within)$"

// byKernel are the tests whose outcome is a kernel's of its version, on one between
// Linux 6.1 and this machine's, which run all of them.
const byKernel = "^TestKernel(Agent|AgentContainer|AgentLoss|AgentLossReceived|AgentPods|AttachSpaces|BindLive|DoctorFacts|DoctorInterface|DoctorPackets|DoctorPrograms|" +
	"Edits|Escape|FirewallBypassed|LockMounts|LockStandard|LockState|Mounts|Nobody|OrdinaryPrograms|ReceiveKinds|ReceivedDropped|Script|Self|SelfCounts|ShowBoth|Within)$"

// inGuests is what all guests leave out.
var inGuests = map[string]string{
	"^TestKernelChangeOne$":     "it builds the program with the go command",
	"^TestKernelDemo$":          "its shares within 5 % take a processor that is not emulated",
	"^TestKernelScript$/^bind$": "it starts the program some 60 times, and its words are those of every kernel",
	"^TestKernelLocked$":        "it waits for ten seconds, and asks nothing of the kernel",
	"^TestKernelRealPrograms$":  "its shares within 5 % take a processor that is not emulated",
	"^TestKernelRealDownloads$": "package cgroup tries there whose each received packet is, in TestKernelReceive",
	"^TestKernelConfirmCut$":    "ssh asks nothing of the kernel, and is not there",
	"^TestKernelRealBothWays$":  "that all move in the seconds that it lasts takes a processor that is not emulated",
}

// TestVM repeats the tests of the program on other kernels.
func TestVM(t *testing.T) {
	vm.Matrix(t,
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64"), Not: inGuests},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64"), Tests: byKernel, Not: inGuests},
	)
}

// TestVMLayouts repeats with each layout of cgroups those that it matters to.
func TestVMLayouts(t *testing.T) {
	onUML := maps.Clone(inGuests)
	onUML["^TestKernelScript$/^nft$"] = "its kernel has no nf_tables"
	onUML["^TestKernelEscape$/^nft$"] = "its kernel has no nf_tables"
	onUML["^TestKernelScript$/^run$"] = "its kernel has no Landlock, which run's own level takes"
	const elsewhere = "another guest tries it with the same kernel"
	onUML["^TestKernelScript$/^(doctorin|drift|foreign|gone|kinds|line|ls|match|missing|received|rename|rollback|stacked|unquoted)$"] = "Debian's kernel of the same version tries it, and layouts do not matter to it"
	onHybrid := maps.Clone(onUML)
	onUML["^TestKernelEscape$/^net_cls$"] = elsewhere
	onHybrid["^TestKernelEscape$/^bpf$"] = elsewhere
	onHybrid["^TestKernelScript$/^netcls$"] = "it mounts net_cls, which is mounted there"
	onV1 := maps.Clone(onUML)
	onV1["^TestKernelEscape$"] = elsewhere
	for _, script := range []string{"apply", "gonegroup", "held", "netcls", "prove"} {
		onV1["^TestKernelScript$/^"+script+"$"] = "its words are those of a machine with cgroup v2"
	}
	vm.Matrix(t,
		vm.Guest{Kernel: vm.UML(), Tests: byLayout, Not: onUML, Lacks: []string{"Landlock"}},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.Hybrid, Tests: byLayout, Not: onHybrid, Lacks: []string{"Landlock"}},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.V1, Tests: byLayout, Not: onV1, Lacks: []string{"Landlock", "a mounted cgroup v2 hierarchy"}},
	)
}
