package resolve

import (
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// TestPlace holds which branch a pod belongs to.
func TestPlace(t *testing.T) {
	branch := func(p hierarchy.Path, pods ...string) Branch {
		b := Branch{Path: p, Bind: []bind.Binding{{Kind: bind.User, Name: "shop"}}}
		for _, x := range pods {
			b.Bind = append(b.Bind, bind.Binding{Kind: bind.Pod, Name: x})
		}
		return b
	}
	plain := []Branch{branch("eth0"), branch("eth0/web", "shop/*"), branch("eth0/web/api", "shop/api-*", "*/label:tier=gold"), branch("eth0/batch", "*/*"), branch("eth0/own"), branch("eth0/rest")}
	limited := []Branch{branch("eth0/web", "shop/*"), branch("eth0/web/pod-shop-x", "shop/x"), branch("eth0/batch", "shop/*", "ops/y")}
	for _, x := range []struct {
		name     string
		of       []Branch
		pod      bind.RunningPod
		want, by string
		denied   string
	}{
		{"the first that may carry it", plain, bind.RunningPod{Namespace: "shop", Name: "x"}, "eth0/web", "shop/*", ""},
		{"and below that the first again", plain, bind.RunningPod{Namespace: "shop", Name: "api-1"}, "eth0/web/api", "shop/api-*", ""},
		{"another namespace", plain, bind.RunningPod{Namespace: "ops", Name: "api-1"}, "eth0/batch", "*/*", ""},
		{"by a label", plain, bind.RunningPod{Namespace: "ops", Name: "x", Labels: map[string]string{"tier": "gold"}}, "eth0/web/api", "*/label:tier=gold", ""},
		{"a wish", plain, bind.RunningPod{Namespace: "shop", Name: "x", Wish: "batch"}, "eth0/batch", "*/*", ""},
		{"a wish by its whole path", plain, bind.RunningPod{Namespace: "shop", Name: "api-1", Wish: "eth0/web"}, "eth0/web/api", "shop/api-*", ""},
		{"a wish that is not granted", plain, bind.RunningPod{Namespace: "ops", Name: "x", Wish: "web"}, "eth0/batch", "*/*", "ops/x would like web, and is not among the pods of that"},
		{"a wish for a branch without pods", plain, bind.RunningPod{Namespace: "ops", Name: "x", Wish: "own"}, "eth0/batch", "*/*", "ops/x would like own, and is not among the pods of that"},
		{"a wish for nothing", plain, bind.RunningPod{Namespace: "ops", Name: "x", Wish: "eth1/web"}, "eth0/batch", "*/*", "ops/x would like eth1/web, and there is no such branch"},
		{"nowhere", limited, bind.RunningPod{Namespace: "ops", Name: "x"}, "", "", ""},
		{"a limit", limited, bind.RunningPod{Namespace: "shop", Name: "x"}, "eth0/web/pod-shop-x", "shop/x", ""},
		{"a limit below its wish", limited, bind.RunningPod{Namespace: "shop", Name: "x", Wish: "web"}, "eth0/web/pod-shop-x", "shop/x", ""},
		{"a limit elsewhere", limited, bind.RunningPod{Namespace: "shop", Name: "x", Wish: "batch"}, "eth0/batch", "shop/*", ""},
		{"by name", limited, bind.RunningPod{Namespace: "ops", Name: "y"}, "eth0/batch", "ops/y", ""},
	} {
		got := Place(&x.pod, x.of)
		at := ""
		if got.Branch != nil {
			at = string(got.Branch.Path)
		}
		if at != x.want || got.Binding.Name != x.by || got.Denied != x.denied {
			t.Errorf("%s: in %q by %q, denied %q", x.name, at, got.Binding.Name, got.Denied)
		}
	}
}

func TestPodCgroup(t *testing.T) {
	for in, want := range map[string]string{
		"/kubepods/burstable/pod1":        "/kubepods/burstable/pod1",
		"kubepods/pod1":                   "/kubepods/pod1",
		"kubepods-burstable-pod1_2.slice": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
		"kubepods.slice":                  "/kubepods.slice",
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-p.slice": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-p.slice",
		"":          "/",
		"../../etc": "/etc",
	} {
		if got := PodCgroup(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
