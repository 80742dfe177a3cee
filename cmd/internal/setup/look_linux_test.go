package setup

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// look is what Look sees in a namespace.
func look(t *testing.T, ns *lab.NetNS, root string) (s *Survey, err error) {
	t.Helper()
	failed := ns.Do(func() error {
		c, open := rtnl.Open(rtnl.Config{})
		if open != nil {
			return open
		}
		s, err = Look(t.Context(), c, root)
		return c.Close()
	})
	if failed != nil {
		t.Fatal(failed)
	}
	return s, err
}

// units makes a slice of systemd's at the top of the cgroups, with units in it.
func units(t *testing.T, names ...string) (slice string, dirs []string) {
	t.Helper()
	tctest.RequireRoot(t)
	slice = strings.ReplaceAll(tctest.Name(), "-", "") + ".slice"
	dir := filepath.Join(tctest.Cgroup2Mount(t), slice)
	for _, name := range names {
		dirs = append(dirs, filepath.Join(dir, name))
		if err := os.MkdirAll(dirs[len(dirs)-1], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, d := range append(slices.Clone(dirs), dir) {
			if err := os.Remove(d); err != nil {
				t.Error(err)
			}
		}
	})
	return slice, dirs
}

// TestKernelLook: what is found of routes, networks, listeners, containers and users.
func TestKernelLook(t *testing.T) {
	pair := tctest.New(t, lab.PairConfig{})
	ns := pair.Near
	if _, err := look(t, ns, "/"); !errors.Is(err, ErrNoRoute) {
		t.Fatalf("without a route: %v", err)
	}
	if err := ns.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), pair.Far4, pair.Dev); err != nil {
		t.Fatal(err)
	}
	if err := lab.AddVeth(ns, lab.Link{Name: "lan.7", Addrs: []netip.Prefix{netip.MustParsePrefix("192.168.7.1/24"), netip.MustParsePrefix("192.168.7.9/24"), netip.MustParsePrefix("10.0.0.1/32")}},
		pair.Far, lab.Link{Name: "far7"}); err != nil {
		t.Fatal(err)
	}
	if err := ns.AddLink(lab.Link{Name: "docker0", Kind: "bridge", Addrs: []netip.Prefix{netip.MustParsePrefix("172.17.0.1/16")}}); err != nil {
		t.Fatal(err)
	}

	const odd, id = `foo@bar\x2dbaz.service`, "0123456789abcdef"
	whole := strings.Repeat(id, 3) + fmt.Sprintf("%016x", os.Getpid())
	container := "docker-" + whole + ".scope"
	_, dirs := units(t, odd, "web.socket", "ssh.service", "quiet.service", container, "session-1.scope")
	root := t.TempDir()
	state := filepath.Join(root, "var/lib/docker/containers", whole)
	if err := os.MkdirAll(state, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "config.v2.json"), []byte(`{"Name":"/shop"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	var actors []*tctest.Actor
	start := func(dir string, told ...string) {
		t.Helper()
		actors = append(actors, tctest.Start(t, ns, append([]string{"enter", dir}, told...)...))
		actors[len(actors)-1].Do("listen udp 127.0.0.1:0") // it has done what it was told by then
	}
	start(dirs[0], ";", "listen", "tcp", ":8080", ";", "listen", "tcp", "198.18.0.1:443", ";", "listen", "udp", ":53", ";", "listen", "udp", ":68")
	start(dirs[1], ";", "listen", "tcp", "198.18.0.1:80")
	start(dirs[2], ";", "listen", "tcp", ":2222")
	start(dirs[3], ";", "listen", "tcp", "127.0.0.1:3000")
	start(dirs[4], ";", "listen", "tcp", ":9000")
	for range manyProcesses {
		start(dirs[5], ";", "user", "61234")
	}
	for range manyProcesses {
		start(dirs[3], ";", "user", "61235") // a service's
	}

	s, err := look(t, ns, root)
	if err != nil {
		t.Fatal(err)
	}
	found := func(all []Found) (text []string) {
		for _, f := range all {
			text = append(text, f.Bind.String()+": "+f.Text)
		}
		return text
	}
	want := &Survey{
		Uplinks: []Uplink{{Name: "eth0", What: "virtual (veth)", IPv4: true}},
		LANs:    []LAN{{"lan.7", []netip.Prefix{netip.MustParsePrefix("192.168.7.0/24")}}},
		SSH:     []uint16{2222},
	}
	if diff := cmp.Diff(want, s, cmpopts.IgnoreFields(Survey{}, "Logins", "Listeners", "Containers", "Users", "NoMatch", "NoHost", "Gaps"), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"unit:ssh.service: listens on tcp 2222"}, found(s.Logins)); diff != "" {
		t.Errorf("logins (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"unit:" + odd + ": listens on tcp 443, 8080, udp 53", "unit:web.service: listens on tcp 80"}, found(s.Listeners)); diff != "" {
		t.Errorf("listeners (-want +got)\n%s", diff)
	}
	// The machine may have others.
	if all := found(s.Containers); !slices.ContainsFunc(all, func(f string) bool { return strings.HasPrefix(f, "container:shop: ") }) {
		t.Errorf("containers: %q", all)
	}
	if all := found(s.Users); !slices.Contains(all, fmt.Sprintf("user:61234: %d processes", manyProcesses)) || strings.Contains(strings.Join(all, " "), "61235") {
		t.Errorf("users: %q", all)
	}
	for _, p := range Purposes {
		text := s.Policy(p, "", nil)
		checked(t, text)
		if _, bound := checked(t, ready.ReplaceAllString(text, "$1")); !slices.Contains(bound, "unit:"+odd) || !slices.Contains(bound, "container:shop") {
			t.Errorf("%s binds %q", p, bound)
		}
	}
	for _, a := range actors {
		a.Dismiss()
	}
}
