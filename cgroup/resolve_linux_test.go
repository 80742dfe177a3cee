package cgroup_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelPatterns: a pattern is bound to all that it matches; of several that
// match one cgroup the most exact counts, and where there is none of them, none.
func TestKernelPatterns(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	for _, name := range []string{"a-1", "a-2", "b-1", `x\x2dy`} {
		sub(t, p.dir, name, "inner")
	}
	dir := p.target(p.dir)
	// A slice as systemd makes it, at the top of the hierarchy.
	top := strings.ReplaceAll(tctest.Name(), "-", "")
	slice := sub(t, p.mount, top+".slice")
	t.Cleanup(func() { removeAll(t, slice) })
	for _, name := range []string{"w@1.service", "w@2.service", "w.socket", "s1.service", "s1.socket", "s2.socket"} {
		sub(t, slice, top+name)
	}
	inner := sub(t, slice, top+"-in.slice")
	sub(t, inner, top+"w@3.service", top+"w@4.service") // below a unit: its own
	sub(t, inner, top+"w@2.service")                    // there twice
	b := n.binder(t, bind.WayBPF)
	if _, _, err := homes(t, b).Make("eth0/web"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.removeHomes(t) })
	home := "/vifshape"
	unit := func(name string) string { return p.target(slice) + "/" + top + name }

	type words map[hierarchy.Path][]string
	for _, tt := range []struct {
		name    string
		bind    words
		want    []string // PATH TARGET, without the cgroup of the branch itself
		pending []string
		refused []string // the first words of what is said
	}{
		{name: "one part", bind: words{"eth0/web": {dir + "/a-*"}},
			want: []string{"eth0/web " + dir + "/a-1", "eth0/web " + dir + "/a-2"}},
		{name: "several parts", bind: words{"eth0/web": {dir + "/[ab]-1/in?er"}},
			want: []string{"eth0/web " + dir + "/a-1/inner", "eth0/web " + dir + "/b-1/inner"}},
		{name: "a name behind a pattern", bind: words{"eth0/web": {dir + "/*-2/inner", dir + "/*-2/none"}},
			want: []string{"eth0/web " + dir + "/a-2/inner"}, pending: []string{"eth0/web no such cgroups below " + p.mount}},
		{name: "backslash", bind: words{"eth0/web": {dir + `/x\x2d*`}},
			want: []string{`eth0/web ` + dir + `/x\x2dy`}},
		{name: "nothing yet", bind: words{"eth0/web": {dir + "/none*", "cgroup:/no/such/*"}},
			pending: []string{"eth0/web no such cgroups below " + p.mount, "eth0/web no such cgroups below " + p.mount}},
		{name: "exact before pattern", bind: words{"eth0/api": {dir + "/a-*"}, "eth0/web": {dir + "/a-1"}},
			want: []string{"eth0/api " + dir + "/a-2", "eth0/web " + dir + "/a-1"}},
		{name: "longer before shorter", bind: words{"eth0/api": {dir + "/*"}, "eth0/web": {dir + "/a*"}},
			want: []string{"eth0/api " + dir + "/b-1", `eth0/api ` + dir + `/x\x2dy`, "eth0/web " + dir + "/a-1", "eth0/web " + dir + "/a-2"}},
		{name: "as long", bind: words{"eth0/api": {dir + "/a*"}, "eth0/web": {dir + "/*1"}},
			want: []string{"eth0/api " + dir + "/a-2", "eth0/web " + dir + "/b-1"},
			refused: []string{`eth0/web: binding "` + dir + `/*1" names ` + dir + `/a-1, which "` + dir + `/a*" of eth0/api names already, and just as exactly: bind ` +
				dir + `/a-1 by its name, or write more of the name in one of the two`}},
		{name: "as long, and a more exact one", bind: words{"eth0/api": {dir + "/a*", dir + "/a-1"}, "eth0/web": {dir + "/*1"}},
			want: []string{"eth0/api " + dir + "/a-1", "eth0/api " + dir + "/a-2", "eth0/web " + dir + "/b-1"}},
		{name: "as long, to one branch", bind: words{"eth0/web": {dir + "/a*", dir + "/*1"}},
			want: []string{"eth0/web " + dir + "/a-1", "eth0/web " + dir + "/a-2", "eth0/web " + dir + "/b-1"}},
		{name: "one name twice", bind: words{"eth0/api": {dir + "/a-1"}, "eth0/web": {"unit:" + top + "w@1.service", unit("w@1.service")}},
			want: []string{"eth0/api " + dir + "/a-1", "eth0/web " + unit("w@1.service")}},
		{name: "units", bind: words{"eth0/web": {"unit:" + top + "w@*.service"}, "eth0/api": {"unit:" + top + "w@1.service"}},
			want:    []string{"eth0/api " + unit("w@1.service"), "eth0/web " + p.target(inner) + "/" + top + "w@3.service"},
			pending: []string{"eth0/web 2 cgroups bear the name; write one of them: " + p.target(inner) + "/" + top + "w@2.service, " + unit("w@2.service")}},
		{name: "units of any kind", bind: words{"eth0/web": {"unit:" + top + "w*.s[eo]*t"}},
			want: []string{"eth0/web " + unit("w.socket")}},
		{name: "a service and its socket", bind: words{"eth0/web": {"unit:" + top + "s1.service"}},
			want: []string{"eth0/web " + unit("s1.service"), "eth0/web " + unit("s1.socket")}},
		{name: "a service that waits for its socket", bind: words{"eth0/web": {"unit:" + top + "s2.service"}},
			want:    []string{"eth0/web " + unit("s2.socket")},
			pending: []string{"eth0/web the unit is not running (a user's own or a container's is named by cgroup:/PATH)"}},
		{name: "services and their sockets", bind: words{"eth0/web": {"unit:" + top + "s*.service"}},
			want: []string{"eth0/web " + unit("s1.service"), "eth0/web " + unit("s1.socket"), "eth0/web " + unit("s2.socket")}},
		{name: "a service before services", bind: words{"eth0/web": {"unit:" + top + "s*.service"}, "eth0/api": {"unit:" + top + "s1.service"}},
			want: []string{"eth0/api " + unit("s1.service"), "eth0/api " + unit("s1.socket"), "eth0/web " + unit("s2.socket")}},
		{name: "a socket by its name", bind: words{"eth0/api": {"unit:" + top + "s1.service"}, "eth0/web": {"unit:" + top + "s1.socket"}},
			want: []string{"eth0/api " + unit("s1.service"), "eth0/web " + unit("s1.socket")}},
		{name: "no such unit", bind: words{"eth0/web": {"unit:" + top + "x*.service"}},
			pending: []string{"eth0/web no such unit is running (a user's own or a container's is named by cgroup:/PATH)"}},
		{name: "slices", bind: words{"eth0/web": {"slice:" + top + "*.slice"}},
			want: []string{"eth0/web " + p.target(slice), "eth0/web " + p.target(inner)}},
		{name: "a unit and a cgroup", bind: words{"eth0/web": {"unit:" + top + "w@1.s*"}, "eth0/api": {p.target(slice) + "/" + top + "w@1.*"}},
			want: []string{"eth0/api " + unit("w@1.service")}},
		{name: "not the homes of branches", bind: words{"eth0/web": {"cgroup:/vifshap?", "cgroup:/vifshape/*", "cgroup:/*/eth0"}},
			pending: []string{"eth0/web no such cgroups below " + p.mount, "eth0/web no such cgroups below " + p.mount, "eth0/web no such cgroups below " + p.mount}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var branches []resolve.Branch
			for _, at := range []hierarchy.Path{"eth0/api", "eth0/web"} {
				br := resolve.Branch{Path: at, Entry: at, Class: red}
				for _, s := range tt.bind[at] {
					x, err := bind.Parse(s)
					if err != nil {
						t.Fatal(err)
					}
					br.Bind = append(br.Bind, x)
				}
				branches = append(branches, br)
			}
			r, err := b.Resolve(t.Context(), branches, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got, pending, refused []string
			for _, x := range r.Bound {
				if x.From != "run" {
					got = append(got, string(x.Path)+" "+x.Target.String())
				} else if !strings.HasPrefix(x.Target.Name, home) {
					t.Errorf("home %s", x.Target)
				}
			}
			for _, x := range r.Pending {
				pending = append(pending, string(x.Path)+" "+x.Reason)
			}
			for _, x := range r.Refused {
				refused = append(refused, x.Err.Error())
			}
			slices.Sort(got)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("bound (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.pending, pending); diff != "" {
				t.Errorf("pending (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.refused, refused); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}

// TestKernelLike: what is not there is answered with what is like it: unit files and what runs,
// users, interfaces, containers that run, cgroups beside.
func TestKernelLike(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p, v := newPlace(t, bind.WayBPF), newState(t)
	id := number("1a")
	v.docker(id, "web-server")
	v.docker(number("2b"), "web-servers") // which does not run
	sub(t, p.dir, "docker-"+id+".scope")
	sub(t, p.dir, "one", "inner")
	for _, file := range []string{
		"etc/systemd/system/nginx.service", "usr/lib/systemd/system/cron.service", "usr/lib/systemd/system/sshd.service", "lib/systemd/system/ssh.socket",
		"run/systemd/transient/burst.scope", "usr/lib/systemd/system/php-fpm@.service", "usr/lib/systemd/system/machine.slice", "usr/lib/systemd/system/multi-user.target.wants/crom.service",
	} {
		file = filepath.Join(v.dir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(v.dir, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\nalina:x:1001:1001::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	top := strings.ReplaceAll(tctest.Name(), "-", "")
	slice := sub(t, p.mount, top+".slice")
	t.Cleanup(func() { removeAll(t, slice) })
	sub(t, slice, top+"run.service")
	dir := p.target(p.dir)
	b := n.binderFor(t, v)
	for _, tt := range []struct {
		bind  string
		known bool
		near  []string
	}{
		{"unit:ngnix.service", false, []string{"unit:nginx.service"}},
		{"unit:nginx.service", true, nil}, // stopped
		{"unit:nginx.servise", false, []string{"unit:nginx.service"}},
		{"unit:corn.service", false, []string{"unit:cron.service"}},
		{"unit:sshd.socket", false, []string{"unit:ssh.socket"}},
		{"unit:quite-else.service", false, nil},
		{"unit:php-fmp@8.service", false, []string{"unit:php-fpm@8.service"}},
		{"unit:php-fpm@8.service", true, nil},
		{"unit:php-fpm@.service", false, []string{"unit:php-fpm@*.service"}},
		{"unit:php@*.service", true, nil}, // a pattern stands for what may come
		{"unit:" + top + "rum.service", false, []string{"unit:" + top + "run.service"}},
		{"slice:machina.slice", false, []string{"slice:machine.slice"}},
		{"user:alicia", false, []string{"user:alice", "user:alina"}},
		{"user:bob", false, nil},
		{"link:" + n.Dev + "x", false, []string{"link:" + n.Dev}},
		{"container:web-sever", false, []string{"container:web-server"}},
		{"container:web-servers", true, nil},
		{dir + "/on/inner", false, []string{dir + "/one/inner"}},
		{dir + "/one/iner", false, []string{dir + "/one/inner"}},
		{dir + "/on/els", false, []string{dir + "/one"}},
		{"cgroup:/vifshap", false, nil}, // homes are not for others to bind
	} {
		x, err := bind.Parse(tt.bind)
		if err != nil {
			t.Fatal(err)
		}
		known, near := b.Like(t.Context(), x)
		var got []string
		for _, n := range near {
			got = append(got, n.String())
		}
		if known != tt.known || !slices.Equal(got, tt.near) {
			t.Errorf("%s: known %v, like it %q; want %v, %q", tt.bind, known, got, tt.known, tt.near)
		}
	}
}

// TestKernelResolveInterrupted: who has much to look for need not wait for all of it.
func TestKernelResolveInterrupted(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	b := n.binder(t, bind.WayBPF)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := b.Resolve(ctx, resolve.Branches(tree(t, "unit:none.service")), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, error %v, want it interrupted", r, err)
	}
}
