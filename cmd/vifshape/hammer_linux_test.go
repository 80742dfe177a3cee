package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelAgentHammered: who makes and removes cgroups below a bound one as fast as he can has
// the agent look again and again, and keeps nobody else from the lock; what comes last is bound.
func TestKernelAgentHammered(t *testing.T) {
	tctest.RequireRoot(t)
	n := newNetwork(t)
	base := tctest.Cgroup(n)
	text := fmt.Sprintf("version = 1\n[interface.eth0]\nrate = \"900mbit\"\n[interface.eth0.a]\nrate = \"100mbit\"\nbind = [\"%s/*\"]\n", n.target(base))
	n.ok("apply", n.policy("policy.toml", text))
	n.agent()
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		made := 0
		for dir := filepath.Join(base, "x"); ; made++ {
			select {
			case <-stop:
				stopped <- made
				return
			default:
			}
			_ = os.Mkdir(dir, 0o755)
			_ = os.Remove(dir)
		}
	}()
	var longest time.Duration
	for i := range 10 {
		begun := time.Now()
		n.ok("apply", n.policy("policy.toml", strings.Replace(text, "100mbit", fmt.Sprintf("%dmbit", 101+i), 1)))
		longest = max(longest, time.Since(begun))
	}
	close(stop)
	t.Logf("%d cgroups made, the longest apply %v", <-stopped, longest)
	last := filepath.Join(base, "last") // which its looks at all those must not have it miss
	if err := os.Mkdir(last, 0o755); err != nil {
		t.Fatal(err)
	}
	n.until("the last to be bound", func() bool { return n.boundClasses()[n.target(last)] != 0 })
}
