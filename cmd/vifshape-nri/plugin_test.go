package main

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"

	"github.com/vifshape/vifshape/hierarchy"
)

// TestBandwidth holds that quantities are read as Kubernetes reads them.
func TestBandwidth(t *testing.T) {
	for in, want := range map[string]hierarchy.Bandwidth{
		"10M": 10 * hierarchy.Mbit, "1k": hierarchy.Kbit, "1Ki": 1024, "2Mi": 2 << 20, "1e6": hierarchy.Mbit, "1.5G": 1500 * hierarchy.Mbit, "1P": hierarchy.MaxBandwidth,
		"": 0, "10mbit": 0, "999": 0, "-5M": 0, "2P": 0, "M": 0, "1000m": 0,
		"1e+06": hierarchy.Mbit, "1E": 0, "1Ei": 0, "1e-3": 0, "1e-1000000000": 0, "1e1000000000": 0, strings.Repeat("9", 1<<18): 0,
	} {
		got, err := bandwidth(in)
		if got != want || (err == nil) == (want == 0) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

// TestRead holds what of a pod the agent is told, and that what is not understood keeps no pod
// from starting but where that is wanted.
func TestRead(t *testing.T) {
	var out bytes.Buffer
	p := &plugin{log: slog.New(slog.NewTextHandler(&out, nil))}
	s := &api.PodSandbox{
		Id: "1", Namespace: "shop", Name: "web-1", Labels: map[string]string{"app": "web"}, Linux: &api.LinuxPodSandbox{CgroupParent: "/kubepods/pod1"},
		Annotations: map[string]string{"vifshape.dev/branch": "web", "kubernetes.io/egress-bandwidth": "10M", "kubernetes.io/ingress-bandwidth": "fast"},
	}
	x := p.read(s)
	if x.String() != "shop/web-1" || x.Cgroup != "/kubepods/pod1" || x.Wish != "web" || x.Labels["app"] != "web" || x.Up != hierarchy.Absolute(10*hierarchy.Mbit) || !x.Down.IsZero() {
		t.Errorf("%+v", x)
	}
	if !strings.Contains(out.String(), `kubernetes.io/ingress-bandwidth is not held: \"fast\" is no quantity`) {
		t.Errorf("logged: %s", out.String())
	}
	p.strict = true
	if err := p.RunPodSandbox(context.Background(), s); err == nil || !strings.Contains(err.Error(), "pod shop/web-1: kubernetes.io/ingress-bandwidth is not held: ") {
		t.Errorf("strict: %v", err)
	}
}

// TestNoAgent holds that a pod starts without an agent, unless that is not wanted, and that the
// reason is said once.
func TestNoAgent(t *testing.T) {
	var out bytes.Buffer
	p := &plugin{log: slog.New(slog.NewTextHandler(&out, nil)), anew: make(chan struct{}, 1)}
	p.agent.Socket = t.TempDir() + "/none"
	s := &api.PodSandbox{Id: "1", Namespace: "shop", Name: "web-1", Linux: &api.LinuxPodSandbox{CgroupParent: "/kubepods/pod1"}}
	for range 2 {
		if err := p.RunPodSandbox(context.Background(), s); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(out.String(), "pods are not where they belong"); n != 1 {
		t.Errorf("said %d times: %s", n, out.String())
	}
	if len(p.anew) != 1 {
		t.Error("nobody looks again")
	}
	p.strict = true
	if err := p.StartContainer(context.Background(), s, nil); err == nil || !strings.Contains(err.Error(), "shop/web-1 has no branch") {
		t.Errorf("strict: %v", err)
	}
	if err := p.StopPodSandbox(context.Background(), s); err != nil || len(p.live) != 0 {
		t.Errorf("%v, %v", p.live, err)
	}
}
