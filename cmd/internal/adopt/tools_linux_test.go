package adopt_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vifshape/vifshape/cmd/internal/adopt"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// fireqos is a configuration in which packets of both directions are told apart, with a
// class below another. Queues are pfifo, which every kernel has.
const fireqos = `
FIREQOS_DEFAULT_QDISC="pfifo"
interface eth0 world bidirectional ethernet input rate 12000kbit output rate 8000kbit
   class voip commit 200kbit pfifo
      match udp ports 5060,10000:10100
   class interactive commit 20%
      server ssh
      match icmp
   class group office commit 30%
      match dst 198.18.0.0/15
      class web commit 30%
         match tcp dports 8000:9023
      class printer commit 10%
         match tos 0x10
      class default
   class group end
   class six commit 10%
      match6 dst 2001:db8::/32 tcp dport 443
   class default
`

// FireQOS itself makes a tree.
func TestKernelFireQOS(t *testing.T) {
	ns := tctest.New(t, lab.PairConfig{}).Near
	tctest.RequireProgram(t, "fireqos")
	tctest.RequireLink(t, "ifb")
	conf := filepath.Join(t.TempDir(), "fireqos.conf")
	if err := os.WriteFile(conf, []byte(fireqos), 0o600); err != nil {
		t.Fatal(err)
	}
	// It writes down what it did in /run.
	tctest.Output(t, ns, "unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /run && fireqos start "+conf)
	golden(t, "fireqos", imported(t, ns))
}

// Debian's wondershaper makes a root qdisc of kind cbq, which kernels do not have any more
// (Linux 6.8): all that is left of it is what it does at ingress, where the kernel has police.
func TestKernelWondershaper(t *testing.T) {
	ns := tctest.New(t, lab.PairConfig{}).Near
	cmd := exec.CommandContext(t.Context(), tctest.RequireProgram(t, "wondershaper"), "eth0", "6000", "512")
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // that of its last command
	if strings.Contains(tctest.TC(t, ns, "filter", "show", "dev", "eth0", "parent", "ffff:"), "police") {
		golden(t, "wondershaper-debian", imported(t, ns))
		return
	}
	if _, err := policyOf(t, ns); !errors.Is(err, adopt.ErrNothing) {
		t.Error(err)
	}
}

// Where nothing is that others have set up there is no policy, nor of what is ours, nor of a
// root qdisc that no policy can stand for.
func TestKernelNothing(t *testing.T) {
	ns := tctest.New(t, lab.PairConfig{}).Near
	for _, tt := range []struct{ make, want string }{
		{"tc qdisc show dev eth0", "eth0: " + adopt.ErrNothing.Error()},
		{"tc qdisc add dev eth0 root handle 71f: htb default 2", "eth0: " + adopt.ErrOurs.Error()},
		{"tc qdisc replace dev eth0 root handle 3: pfifo_fast", "eth0: its root qdisc pfifo_fast 3: is of a kind that has no branches, and cannot be the queue of one"},
	} {
		run(t, ns, tt.make)
		if text, err := policyOf(t, ns); err == nil || err.Error() != tt.want {
			t.Errorf("%s: %v, want %s\n%s", tt.make, err, tt.want, text)
		}
	}
}
