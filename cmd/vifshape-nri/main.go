// Vifshape-nri is a plugin of containerd and CRI-O that tells the agent of vifshape on this node
// which pods run: each before its first container starts, so that it is in its branch from its
// first packet on. The agent decides, by the policy; this program knows no branch.
//
//	vifshape-nri [--agent SOCKET] [--runtime SOCKET] [--strict]
//
// It is a module of its own: what it takes to speak to the runtime is no part of vifshape.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
)

const help = `vifshape-nri tells the agent of vifshape on this node which pods run, for their branches.

  vifshape-nri [--agent SOCKET] [--runtime SOCKET] [--strict]

It is a plugin of the container runtime (containerd from 1.7 on, CRI-O from 1.26 on, where NRI is
switched on) and stays. A pod is told of before its first container starts; the agent binds all of
it, by its cgroup and by the host's end of its veth, to a branch whose pods = [...] in the policy it
is among. Annotations of a pod:

  vifshape.dev/branch: web                which of these branches its author would like
  kubernetes.io/egress-bandwidth: 10M     a ceiling for what it sends, in bit/s
  kubernetes.io/ingress-bandwidth: 50M    and for what it receives

What cannot be had is logged, and the pod starts nevertheless: with its branch as soon as the
agent answers, or in the rest. With --strict it does not start then. A runtime that is to start no pod while this
plugin is away has to be told so itself: required_plugins of containerd's default_validator.

FLAGS
  --agent SOCKET    of the agent (default: of this network namespace's, which on a machine is
                    /run/vifshape/agent.sock, and in another namespace in a folder there)
  --runtime SOCKET  of the runtime's NRI (default /var/run/nri/nri.sock)
  --strict          no pod starts without its branch

SIGNALS
  TERM, INT  the end, with exit status 0; what is bound stays bound

EXIT STATUS
  0   ended by a signal
  1   an error
  64  wrong flags or arguments
`

func main() {
	p := &plugin{runtime: "/var/run/nri/nri.sock"}
	flags := flag.NewFlagSet("vifshape-nri", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&p.agent.Socket, "agent", "", "")
	flags.StringVar(&p.runtime, "runtime", p.runtime, "")
	flags.BoolVar(&p.strict, "strict", false, "")
	switch err := flags.Parse(os.Args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(help)
		return
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("%q is no flag", flags.Arg(0))
		fallthrough
	case err != nil:
		fmt.Fprintf(os.Stderr, "vifshape-nri: %v: see vifshape-nri --help\n", err)
		os.Exit(64)
	}
	if p.agent.Socket == "" {
		// A node may itself be a container, as those of kind are, with a network that is not the machine's.
		netNS, err := cgroupfs.NetNSKey(-1)
		if err != nil {
			fmt.Fprintf(os.Stderr, "vifshape-nri: %v: write --agent SOCKET\n", err)
			os.Exit(1)
		}
		p.agent.Socket = filepath.Join("/run/vifshape", netNS, "agent.sock")
	}
	p.log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	p.serve(ctx)
}
