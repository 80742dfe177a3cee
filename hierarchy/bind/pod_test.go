package bind_test

import (
	"encoding/json"
	"testing"

	. "github.com/vifshape/vifshape/hierarchy/bind"
)

func TestParsePods(t *testing.T) {
	const which = ` does not say which pods: write a namespace and a name, as in "shop/web-1" or "shop/*", or a label, as in "shop/label:app=web"`
	const label = `: a label is written with its value, as in "label:app=web"`
	check(t, ParsePods, []read[Pods]{
		{in: "shop/web-1", want: "shop/web-1"},
		{in: "shop/*", want: "shop/*"},
		{in: "*/*", want: "*/*"},
		{in: "label:app=web", want: "label:app=web"},
		{in: "label:app.kubernetes.io/name=web-*", want: "label:app.kubernetes.io/name=web-*"},
		{in: "team-*/label:tier=gold", want: "team-*/label:tier=gold"},
		{in: "", err: `""` + which},
		{in: "shop", err: `"shop"` + which},
		{in: "shop/", err: `"shop/"` + which},
		{in: "/web", err: `"/web"` + which},
		{in: "shop/web/1", err: `"shop/web/1"` + which},
		{in: "shop/ web", err: `"shop/ web" has a space, a control character or more than 4096 bytes`},
		{in: "label:app", err: `"label:app"` + label},
		{in: "shop/label:=web", err: `"shop/label:=web"` + label},
		{in: "label:a*=web", err: `"label:a*=web"` + label},
		{in: "label:app=", err: `"label:app="` + label},
		{in: "shop/[a", err: `"shop/[a": a [ opens a list of characters as in [a-c], and must be closed; write [[] for the bracket itself`},
		{in: "pod:shop/web", err: `"pod:shop/web": write "shop/web"`},
		{in: "serviceaccount:shop/api", err: `"serviceaccount:shop/api": a container runtime is not told of service accounts: name the namespace, as in "shop/*"`},
	})
}

// TestPodsHas holds which pods are meant.
func TestPodsHas(t *testing.T) {
	pod := &RunningPod{Namespace: "shop", Name: "web-1", Labels: map[string]string{"app": "web", "app.kubernetes.io/name": "shop-web", "empty": ""}}
	for _, x := range []struct {
		of                     Pods
		has, named, everywhere bool
	}{
		{"shop/web-1", true, true, false},
		{"shop/*", true, false, false},
		{"*/web-?", true, false, true},
		{"sh*/web-[0-9]", true, false, false},
		{"Shop/web-1", false, true, false},
		{"shop/web", false, true, false},
		{"label:app=web", true, false, true},
		{"label:app=w*", true, false, true},
		{"label:app=api", false, false, true},
		{"label:empty=*", true, false, true},
		{"label:none=*", false, false, true},
		{"label:app.kubernetes.io/name=shop-web", true, false, true},
		{"shop/label:app=web", true, false, false},
		{"other/label:app=web", false, false, false},
	} {
		if has, named, everywhere := x.of.Has(pod), x.of.Named(), x.of.Everywhere(); has != x.has || named != x.named || everywhere != x.everywhere {
			t.Errorf("%s: has %t, named %t, everywhere %t, want %+v", x.of, has, named, everywhere, x)
		}
	}
}

// TestPodsText holds that a record with what no policy can say is refused.
func TestPodsText(t *testing.T) {
	var all []Pods
	if err := json.Unmarshal([]byte(`["shop/*", "label:app=web"]`), &all); err != nil || len(all) != 2 || all[1] != "label:app=web" {
		t.Errorf("%v, %v", all, err)
	}
	if err := json.Unmarshal([]byte(`["shop"]`), &all); err == nil {
		t.Errorf("taken: %v", all)
	}
}
