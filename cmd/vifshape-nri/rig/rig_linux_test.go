package rig_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/vifshape/vifshape/cmd/vifshape-nri/rig"
	"github.com/vifshape/vifshape/tc/tctest"
)

func TestMain(m *testing.M) { tctest.Main(m, rig.Verbs) }

// TestRig: a pod runs as it does on a node, what it sends arrives, it outlives containerd, and
// nothing is left of it, and of the rig.
func TestRig(t *testing.T) {
	var cgroup, namespaces string
	t.Run("node", func(t *testing.T) {
		r := rig.Start(t)
		cgroup = r.Cgroup
		p := r.Pod(rig.Spec{Namespace: "shop", Name: "web-1", Labels: map[string]string{"app": "web"}})
		if len(p.Addrs) != 2 || !p.Addrs[0].Is4() || !p.Addrs[1].Is6() {
			t.Fatalf("addresses %v, not one of each protocol", p.Addrs)
		}
		if code := p.Init("sh", "-c", "exit 3"); code != 3 {
			t.Errorf("an init container that exits with 3: %d", code)
		}
		p.Send(r.Far4)
		p.Send(r.Far6)
		for _, a := range p.Addrs {
			r.Until(fmt.Sprintf("a megabyte from %v", a), func() bool { return r.Sink.Bytes(a) > 1e6 })
		}
		if left := r.Left(); len(left) == 0 {
			t.Error("of a pod that runs there is nothing")
		}
		r.KillContainerd()
		was := r.Sink.Bytes(p.Addrs[0])
		r.Until("more without containerd", func() bool { return r.Sink.Bytes(p.Addrs[0]) > was+1e6 })
		r.StartContainerd()

		host := r.Pod(rig.Spec{Namespace: "shop", Name: "agent", HostNetwork: true})
		if len(host.Addrs) != 0 {
			t.Errorf("a pod in the network of the node has %v", host.Addrs)
		}
		host.Send(r.Far4)
		r.Until("a megabyte from the node", func() bool { return r.Sink.Bytes(r.Near4) > 1e6 })
		host.Remove()
		p.Remove()
		if left := r.Left(); len(left) > 0 {
			t.Errorf("left of pods that are removed: %q", left)
		}
		// One that is there when the rig ends goes with it.
		r.Pod(rig.Spec{Namespace: "shop", Name: "web-2"}).Send(r.Far4)
		var err error
		if namespaces, err = os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", r.PID())); err != nil {
			t.Fatal(err)
		}
	})
	all, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if ns, err := os.Readlink(p); err == nil && ns == namespaces {
			t.Errorf("%s is in the rig, which has ended", p)
		}
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*" + cgroup)
	if _, err2 := os.Stat("/sys/fs/cgroup" + cgroup); err != nil || len(groups) > 0 || !errors.Is(err2, fs.ErrNotExist) {
		t.Errorf("cgroups of the rig, which has ended: %v (%v, %v)", groups, err, err2)
	}
}
