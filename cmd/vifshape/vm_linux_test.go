package main

import (
	"maps"
	"testing"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// What runs on other kernels is named: the program starts hundreds of times in these tests,
// an emulated processor takes ten times as long for it, and what it asks of a kernel the tests
// of the packages below ask there, too. Of most, this machine's kernel is enough.

// byLayout are the tests that go by what hierarchies of cgroups there are, and by what
// user-mode Linux lacks.
const byLayout = "^TestKernel(AgentRestart|BindLive|DaemonSet|Delegate|DoctorFacts|DoctorVerdict|Edits|Escape|LockMissing|Mounts|Nobody|Script|Self|SelfCounts|Within)$"

// byKernel are the tests whose outcome goes by the kernel's version.
const byKernel = "AgentLoss|AgentLossReceived|AttachSpaces|DoctorPackets|DoctorPrograms|FirewallBypassed|LockStandard|OrdinaryPrograms|ReceiveKinds|ReceivedDropped|Script|Within"

// byOldest are the others that go by what a kernel tells of interfaces, queues and programs, on
// the oldest; on the newest this machine tries them. What is among those by layout user-mode Linux
// tries with the same kernel.
const byOldest = "Agent|AgentContainer|AgentPods|Churn|DefaultRoute|DeviceGone|DoctorInterface|Enable|Escape|Export|FlowsFull|Import|LinkSpeed|Lock|" +
	"LockMounts|LockState|LockUnfit|PodsEnded|PortLeft|Renamed|ShowBoth|Terminal|Unguard|Watch"

// inGuests are scripts that all guests leave out.
var inGuests = map[string]string{
	"^TestKernelScript$/^bind$":                "it starts the program some 60 times, and its words are those of every kernel",
	"^TestKernelScript$/^exporter$":            "it asks the kernel what ls and show ask, and curl is not there",
	"^TestKernelScript$/^limit(drift|policy)$": "it asks the kernel nothing that limit, drift and rollback do not ask there",
	"^TestKernelScript$/^teach$":               "it starts the program some 50 times, and its words are those of every kernel",
	"^TestKernelScript$/^web$":                 "it asks the kernel what show and explain ask, and curl is not there",
}

// TestVM repeats the tests of the program on other kernels.
func TestVM(t *testing.T) {
	on61, on612 := maps.Clone(inGuests), maps.Clone(inGuests)
	on61["^TestKernelScript$/^(doctorin|drift|emulate|explain|homes|import|init|limit(lost|route|run|same)|line|match|missing|provematch|renamed|rollback|unquoted|whatif)$"] = "it asks the kernel nothing that other scripts do not ask there"
	on612["^TestKernelScript$/^(doctor|doctorin|drift|emulate|explain|foreign|homes|import|init|limit|limit(lost|route|run|same)|line|match|missing|proveboth|provematch|rename|renamed|rollback|run|stacked|unquoted|whatif)$"] = "Linux 6.1 and this machine's try it, between which nothing of it has changed"
	for _, on := range []map[string]string{on61, on612} {
		on["^TestKernelScript$/^latency$"] = "package tc/latency tries there what it asks the kernel"
	}
	vm.Matrix(t,
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64"), Tests: "^TestKernel(" + byKernel + "|" + byOldest + ")$", Not: on61},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64"), Tests: "^TestKernel(" + byKernel + ")$", Not: on612},
	)
}

// TestVMLayouts repeats with each layout of cgroups those that it matters to.
func TestVMLayouts(t *testing.T) {
	onUML := maps.Clone(inGuests)
	onUML["^TestKernelScript$/^nft$"] = "its kernel has no nf_tables"
	onUML["^TestKernelEscape$/^nft$"] = "its kernel has no nf_tables"
	onUML["^TestKernelScript$/^run$"] = "its kernel has no Landlock, which run's own level takes"
	const elsewhere = "another guest tries it with the same kernel"
	onUML["^TestKernelScript$/^(doctorin|drift|emulate|explain|foreign|gone|import|init|kinds|limit|line|ls|match|missing|received|rename|rollback|stacked|unquoted|whatif)$"] = "layouts do not matter to it"
	onHybrid := maps.Clone(onUML)
	onUML["^TestKernelEscape$/^net_cls$"] = elsewhere
	onHybrid["^TestKernelEscape$/^bpf$"] = elsewhere
	onHybrid["^TestKernelScript$/^latency$"] = elsewhere
	onHybrid["^TestKernelScript$/^netcls$"] = "it mounts net_cls, which is mounted there"
	onV1 := maps.Clone(onUML)
	onV1["^TestKernelEscape$"] = elsewhere
	onV1["^TestKernelScript$/^latency$"] = elsewhere
	for _, script := range []string{"apply", "gonegroup", "held", "netcls", "prove", "renamed"} {
		onV1["^TestKernelScript$/^"+script+"$"] = "its words are those of a machine with cgroup v2"
	}
	vm.Matrix(t,
		vm.Guest{Kernel: vm.UML(), Tests: byLayout, Not: onUML, Lacks: []string{"Landlock"}},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.Hybrid, Tests: byLayout, Not: onHybrid, Lacks: []string{"Landlock"}},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.V1, Tests: byLayout, Not: onV1, Lacks: []string{"Landlock", "a mounted cgroup v2 hierarchy"}},
	)
}
