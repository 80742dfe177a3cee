//go:build linux

// Command vmrun runs a static test binary in a machine with another kernel:
//
//	CGO_ENABLED=0 go test -exec 'go run ./tc/tctest/vm/vmrun -kernel uml' ./tc
//
// Its exit status is that of the binary, or 125 when the machine failed. Without
// a binary it only fetches or builds the kernel, if it is not there.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// statusMachine is the exit status when there is none of the program.
const statusMachine = 125

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	status, err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmrun:", err)
		status = statusMachine
	}
	os.Exit(status)
}

func run(ctx context.Context) (int, error) {
	kernel := flag.String("kernel", "uml", "`kernel`: uml, systemd, virtual-time or a Debian package linux-image-...")
	cgroup := flag.String("cgroup", "v2", "`layout` of cgroups: v2, hybrid or v1")
	memory := flag.Int("memory", 512, "`MiB` of memory")
	timeout := flag.Duration("timeout", 5*time.Minute, "for the whole machine")
	tools := flag.String("tools", "tc,ip", "`programs` of the host to copy, separated by commas")
	without := flag.String("without", "", "kernel `modules` that the machine shall lack, separated by commas")
	env := flag.String("env", "VIFSHAPE_NO_SKIP,VIFSHAPE_SKIP_OK", "`variables` to pass on, separated by commas")
	reboot := flag.Bool("reboot", false, "run the binary once more after a reboot, with systemd")
	verbose := flag.Bool("v", false, "print what the kernel says")
	flag.Parse()
	k, err := vm.Named(*kernel)
	if err != nil {
		return 0, err
	}
	if flag.NArg() == 0 {
		return 0, k.Fetch(ctx)
	}
	c := vm.Config{
		Kernel: k, Cgroup: vm.Layout(*cgroup), Program: flag.Arg(0), Args: flag.Args()[1:], Dir: ".",
		Tools: list(*tools), Without: list(*without), Reboot: *reboot, Memory: *memory, Timeout: *timeout, Output: os.Stdout,
	}
	for _, name := range list(*env) {
		if v, ok := os.LookupEnv(name); ok {
			c.Env = append(c.Env, name+"="+v)
		}
	}
	if *verbose {
		c.Console = os.Stderr
	}
	return vm.Boot(ctx, c)
}

func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}
