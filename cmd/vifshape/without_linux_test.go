package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestVMWithout: where the kernel lacks what the best way of binding needs, apply and
// doctor take the next that works, and say the same.
func TestVMWithout(t *testing.T) {
	tctest.Require(t, !vm.Inside(), "a machine that can boot another")
	tctest.Require(t, !testing.Short(), "time to boot, and -short is given")
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
			kernel := vm.Debian("linux-image-cloud-amd64")
			status, err := vm.Boot(t.Context(), vm.Config{
				Kernel: kernel, Program: program, Args: []string{"-test.v", "-test.run=^TestKernelDoctorFacts$"},
				Env: []string{wayEnv + "=" + tt.way, "VIFSHAPE_NO_SKIP=1"}, Tools: []string{"tc", "ip"}, Without: strings.Split(tt.without, ","), Output: &out,
				Timeout: 3 * time.Minute,
			})
			tctest.Require(t, !errors.Is(err, vm.ErrNoKernel), fmt.Sprintf("kernel %v (%v)", kernel, err))
			if t.Log(out.String()); err != nil || status != 0 {
				t.Errorf("status %d, %v", status, err)
			}
		})
	}
}

// wayEnv is the variable with the way that doctor has to name; unset: any.
const wayEnv = "VIFSHAPE_TEST_WAY"
