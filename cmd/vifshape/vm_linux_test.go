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
	"^TestKernelChangeOne$":                           "it builds the program with the go command",
	"^TestKernelDemo$":                                "its shares within 5 % take a processor that is not emulated",
	"^TestKernelScript$/^bind$":                       "it starts the program some 60 times, and its words are those of every kernel",
	"^TestKernelScript$/^exporter$":                   "it asks the kernel what ls and show ask, and curl is not there",
	"^TestKernelScript$/^limit(drift|policy)$":        "it asks the kernel nothing that limit, drift and rollback do not ask there",
	"^TestKernelScript$/^teach$":                      "it starts the program some 50 times, and its words are those of every kernel",
	"^TestKernelEnable(Fails|Odd|OneWrong|Patterns)$": "what differs between kernels, TestKernelEnable tries there",
	"^TestKernelExplain$":                             "TestVirtualExplain tries there what goes by kernels",
	"^TestKernelKill(Everywhere|Limits)$":             "where a program is killed is nothing that differs, and it starts it 1,000 times",
	"^TestKernelLocked$":                              "it waits for ten seconds, and asks nothing of the kernel",
	"^TestKernelPrometheus$":                          "it asks the kernel what show asks, and Prometheus is not there",
	"^TestKernelRealPrograms$":                        "its shares within 5 % take a processor that is not emulated",
	"^TestKernelRealDownloads$":                       "package cgroup tries there whose each received packet is, in TestKernelReceive",
	"^TestKernelConfirmCut$":                          "ssh asks nothing of the kernel, and is not there",
	"^TestKernelRealBothWays$":                        "that all move in the seconds that it lasts takes a processor that is not emulated",
	"^TestKernelImported$":                            "its policies are those of another package, and are not there",
}

// TestVM repeats the tests of the program on other kernels.
func TestVM(t *testing.T) {
	on61, on612 := maps.Clone(inGuests), maps.Clone(inGuests)
	on61["^TestKernelDoctorVerdict$"] = "user-mode Linux of the same version tries it, with each layout of cgroups"
	on612["^TestKernelScript$/^(doctorin|init|limit(lost|route|run|same)|match|missing|rollback)$"] = "Linux 6.1 and this machine's try it, between which nothing of it has changed"
	on612["^TestKernelEscape$/^(nft|net_cls)$"] = "what differs between this machine's kernel and 6.1 is BPF's"
	vm.Matrix(t,
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64"), Not: on61},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64"), Tests: byKernel, Not: on612},
	)
}

// TestVMLayouts repeats with each layout of cgroups those that it matters to.
func TestVMLayouts(t *testing.T) {
	onUML := maps.Clone(inGuests)
	onUML["^TestKernelScript$/^nft$"] = "its kernel has no nf_tables"
	onUML["^TestKernelEscape$/^nft$"] = "its kernel has no nf_tables"
	onUML["^TestKernelScript$/^run$"] = "its kernel has no Landlock, which run's own level takes"
	const elsewhere = "another guest tries it with the same kernel"
	onUML["^TestKernelScript$/^(doctorin|drift|emulate|explain|foreign|gone|import|init|kinds|limit|line|ls|match|missing|received|rename|rollback|stacked|unquoted|whatif)$"] = "Debian's kernel of the same version tries it, and layouts do not matter to it"
	onHybrid := maps.Clone(onUML)
	onUML["^TestKernelEscape$/^net_cls$"] = elsewhere
	onHybrid["^TestKernelEscape$/^bpf$"] = elsewhere
	onHybrid["^TestKernelScript$/^netcls$"] = "it mounts net_cls, which is mounted there"
	onV1 := maps.Clone(onUML)
	onV1["^TestKernelEscape$"] = elsewhere
	for _, script := range []string{"apply", "gonegroup", "held", "netcls", "prove", "renamed"} {
		onV1["^TestKernelScript$/^"+script+"$"] = "its words are those of a machine with cgroup v2"
	}
	vm.Matrix(t,
		vm.Guest{Kernel: vm.UML(), Tests: byLayout, Not: onUML, Lacks: []string{"Landlock"}},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.Hybrid, Tests: byLayout, Not: onHybrid, Lacks: []string{"Landlock"}},
		vm.Guest{Kernel: vm.UML(), Cgroup: vm.V1, Tests: byLayout, Not: onV1, Lacks: []string{"Landlock", "a mounted cgroup v2 hierarchy"}},
	)
}
