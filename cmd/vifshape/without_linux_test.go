package main

import (
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVMWithout: where the kernel lacks what the best way of binding needs, apply and
// doctor take the next that works, and say the same.
func TestVMWithout(t *testing.T) {
	kernel := vm.Debian("linux-image-cloud-amd64")
	vm.RequireKernel(t, kernel)
	program := vm.Build(t, ".")
	for _, tt := range []struct {
		without string
		way     string // that is taken; empty: none works
	}{
		{"cls_bpf", "nft"},
		{"sch_ingress", "nft"},
		{"cls_bpf,nf_tables", "cls_cgroup"},
		{"cls_bpf,nf_tables,cls_cgroup", ""},
	} {
		t.Run(tt.without, func(t *testing.T) {
			var out strings.Builder
			status, err := vm.Boot(t.Context(), vm.Config{
				Kernel: kernel, Program: program, Args: []string{"-test.v", "-test.run=^TestKernelDoctorFacts$"},
				Env: []string{wayEnv + "=" + tt.way, "VIFSHAPE_NO_SKIP=1"}, Tools: []string{"tc", "ip"}, Without: strings.Split(tt.without, ","), Output: &out,
				Timeout: 3 * time.Minute,
			})
			if t.Log(out.String()); err != nil || status != 0 {
				t.Errorf("status %d, %v", status, err)
			}
		})
	}
}

// wayEnv is the variable with the way that doctor has to name; unset: any.
const wayEnv = "VIFSHAPE_TEST_WAY"

// TestSkippedWithout: tests skip what is not installed.
func TestSkippedWithout(t *testing.T) {
	tctest.RequireRoot(t)
	tctest.Require(t, !testing.Short(), "time, and -short is given")
	for _, tt := range []struct{ without, test, reason string }{
		{"tc", "TestKernelPlanTC", "program tc"},
		{"tc", "TestKernelScript/foreign", "program tc"},
		{"tc", "TestKernelMounts", "program tc"},
		{"ip", "TestKernelScript/ls", "program ip"},
		{"ip", "TestKernelDoctorInterface/bridge_of_containers", "program "},
		{"iperf3", "TestKernelRealPrograms", "program "},
		{"nginx", "TestKernelRealPrograms", "program nginx"},
		{"curl", "TestKernelRealPrograms", "program "},
		{"curl", "TestKernelScript/exporter", "program curl"},
		{"prometheus", "TestKernelPrometheus", "program prometheus"},
		{"promtool", "TestPrometheusExamples", "program promtool"},
		{"chromium", "TestKernelWebPort", "program chromium"},
		{"dpkg", "TestPackage", "program dpkg"},
		{"tmux", "TestKernelTop", "program tmux"},
		{"gcc", "TestKernelOrdinaryPrograms", "program "},
		{"qemu-system-x86_64", "TestVMWithout", "kernel linux-image-cloud-amd64 "},
	} {
		tctest.SkippedWithout(t, []string{tt.without}, tt.test, tt.reason)
	}
}
