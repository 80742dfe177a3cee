package resolve

import "testing"

// The unit of a cgroup is where the chain of the system's slices ends; what users' managers
// and others call so is none.
func TestUnitOf(t *testing.T) {
	for p, want := range map[string]string{
		"/system.slice/nginx.service":                                         "nginx.service",
		"/system.slice/nginx.service/worker":                                  "nginx.service",
		`/system.slice/system-foo.slice/foo@bar\x2dbaz.service`:               `foo@bar\x2dbaz.service`,
		"/user.slice/user-1000.slice/user@1000.service/app.slice/app.service": "user@1000.service",
		"/user.slice/user-1000.slice/session-3.scope":                         "session-3.scope",
		"/system.slice/_cpu.service":                                          "cpu.service",
		"/init.scope":                                                         "init.scope",
		"/system.slice":                                                       "",
		"/a.slice/nginx.service":                                              "nginx.service",
		"/other/nginx.service":                                                "",
		"/system.slice/foo-bar.slice/x.service":                               "", // called like a slice
		"/openrc.nginx":                                                       "",
		"/":                                                                   "",
	} {
		if got := UnitOf(p); got != want {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
}

func TestInContainer(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for p, want := range map[string]bool{
		"/system.slice/docker-" + id + ".scope":     true,
		"/docker/" + id + "/init":                   true,
		"/kubepods.slice/pod1/cri-containerd-" + id: true,
		"/system.slice/docker.service":              false,
		"/" + id[1:]:                                false,
		"/":                                         false,
	} {
		if got := InContainer(p); got != want {
			t.Errorf("%s: %v", p, got)
		}
	}
}
