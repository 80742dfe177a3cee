package bind_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy/bind"
)

// read is one row for a reader: text, and either a value or the error's words.
type read[T any] struct {
	in   string
	want T
	err  string
}

func check[T comparable](t *testing.T, parse func(string) (T, error), rows []read[T]) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.in, func(t *testing.T) {
			got, err := parse(r.in)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if d := cmp.Diff(r.err, text); d != "" {
				t.Errorf("error (-want +got):\n%s", d)
			}
			if got != r.want {
				t.Errorf("got %v, want %v", got, r.want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	const logins = `, or "slice:user.slice" for all who log in, "slice:user-1*.slice" for those whose number begins with 1; for a share of its own each user takes a branch`
	long := "cgroup:/" + strings.Repeat("a", 4096)
	path := `: a cgroup's path has no empty, "." or ".." part, no slash at its end, and is not the root, which the rest already stands for`
	kinds := `: write "unit:NAME.service", "slice:NAME.slice", "cgroup:/PATH", "user:NAME", "link:INTERFACE" or "container:NAME"`
	check(t, Parse, []read[Binding]{
		{in: "cgroup:/kubepods.slice", want: Binding{Cgroup, "/kubepods.slice"}},
		{in: "cgroup:/a b/c:d", want: Binding{Cgroup, "/a b/c:d"}},
		{in: "cgroup:/...", want: Binding{Cgroup, "/..."}},
		{in: "unit:nginx.service", want: Binding{Unit, "nginx.service"}},
		{in: `unit:dev-disk\x2d1.mount`, want: Binding{Unit, `dev-disk\x2d1.mount`}},
		{in: "unit:getty@tty1.service", want: Binding{Unit, "getty@tty1.service"}},
		{in: "slice:build.slice", want: Binding{Slice, "build.slice"}},
		{in: "unit:worker@*.service", want: Binding{Unit, "worker@*.service"}},
		{in: `unit:disk\x2d[0-9].mount`, want: Binding{Unit, `disk\x2d[0-9].mount`}},
		{in: "slice:machine-?.slice", want: Binding{Slice, "machine-?.slice"}},
		{in: "cgroup:/kubepods.slice/*/cri-[^a]*", want: Binding{Cgroup, "/kubepods.slice/*/cri-[^a]*"}},
		{in: "cgroup:/a[[]b", want: Binding{Cgroup, "/a[[]b"}},
		{in: "user:backup", want: Binding{User, "backup"}},
		{in: "link:veth1", want: Binding{Link, "veth1"}},
		{in: "link:eth0.100", want: Binding{Link, "eth0.100"}},
		{in: "container:web", want: Binding{Container, "web"}},
		{in: "pod:shop/web-1", want: Binding{Pod, "shop/web-1"}},
		{in: "pod:shop/label:app=web", want: Binding{Pod, "shop/label:app=web"}},
		{in: "pod:web", err: `binding "pod:web": "web" does not say which pods: write a namespace and a name, as in "shop/web-1" or "shop/*", or a label, as in "shop/label:app=web"`},
		{in: "container:0123456789ab", want: Binding{Container, "0123456789ab"}},
		{in: "container:k8s_web-1.x", want: Binding{Container, "k8s_web-1.x"}},
		{in: "user:1000", want: Binding{User, "1000"}},
		{in: "user:0", want: Binding{User, "0"}},
		{in: "user:4294967294", want: Binding{User, "4294967294"}},
		{in: "user:0day", want: Binding{User, "0day"}},
		{in: "user:www-data", want: Binding{User, "www-data"}},

		{in: "", err: `binding "" does not say what it names` + kinds},
		{in: "nginx.service", err: `binding "nginx.service" does not say what it names` + kinds},
		{in: "vm:web", err: `binding "vm:web" is of unknown kind "vm"` + kinds},
		{in: " unit:a.service", err: `binding " unit:a.service" is of unknown kind " unit"` + kinds},
		{in: "unit:", err: `binding "unit:" names nothing behind the colon: write "unit:NAME.service"`},
		{in: "pod:", err: `binding "pod:" names nothing behind the colon: write "pod:NAMESPACE/NAME"`},
		{in: "pid:123", err: "binding \"pid:123\": a process is bound while it runs, not by a binding: write `vifshape attach BRANCH 123`, or `vifshape limit pid:123` for a limit alone"},
		{in: "docker:web", err: `binding "docker:web": containers are bound alike, whatever runs them: write "container:web"`},
		{in: "systemd:nginx.service", err: `binding "systemd:nginx.service": what systemd runs is bound as a unit: write "unit:nginx.service"`},
		{in: "service:nginx", err: `binding "service:nginx": what systemd runs is bound as a unit: write "unit:nginx.service"`},
		{in: "unit:fstrim.timer", err: `binding "unit:fstrim.timer": a timer has no processes: write the unit that it starts, "unit:fstrim.service"`},
		{in: "slice:nginx.service", err: `binding "slice:nginx.service" names no slice: write "unit:nginx.service"`},
		{in: "user:alice,bob", err: `binding "user:alice,bob": a binding is to one user: write one for each, "user:alice" and so on`},
		{in: "user:a\nb", err: `binding "user:a\nb" has a control character or more than 4096 bytes`},
		{in: long, err: `binding "` + long + `" has a control character or more than 4096 bytes`},
		{in: "unit: nginx.service", err: `binding "unit: nginx.service" has a space where none can be`},
		{in: "user:a b", err: `binding "user:a b" has a space where none can be`},
		{in: "cgroup:/a ", err: `binding "cgroup:/a " has a space where none can be`},
		{in: "cgroup:a/b", err: `binding "cgroup:a/b": a cgroup is named from the root of its hierarchy: write "cgroup:/a/b"`},
		{in: "cgroup:/", err: `binding "cgroup:/"` + path},
		{in: "cgroup:/a/", err: `binding "cgroup:/a/"` + path},
		{in: "cgroup://a", err: `binding "cgroup://a"` + path},
		{in: "cgroup:/a/../b", err: `binding "cgroup:/a/../b"` + path},
		{in: "cgroup:/a/..", err: `binding "cgroup:/a/.."` + path},
		{in: "cgroup:/./a", err: `binding "cgroup:/./a"` + path},
		{in: "unit:a/b.service", err: `binding "unit:a/b.service": a unit's name has no slash`},
		{in: "link:a/b", err: `binding "link:a/b": a link's name has no slash`},
		{in: "link:a234567890123456", err: `binding "link:a234567890123456": an interface's name has at most 15 bytes and no colon`},
		{in: "link:eth0:1", err: `binding "link:eth0:1": an interface's name has at most 15 bytes and no colon`},
		{in: "link:..", err: `binding "link:..": no interface is called so`},
		{in: "container:a/b", err: `binding "container:a/b": a container's name has no slash`},
		{in: "container:.web", err: `binding "container:.web": a container's name or id has letters, digits and _ . - and begins with a letter or digit`},
		{in: "container:web*", err: `binding "container:web*": only cgroups, units and slices can be named by a pattern: write a binding for each container`},
		{in: "user:a/b", err: `binding "user:a/b": a user's name has no slash`},
		{in: "unit:a.slice", err: `binding "unit:a.slice" names a slice: write "slice:a.slice"`},
		{in: "unit:nginx", err: `binding "unit:nginx": a unit's name has an ending: write "unit:nginx.service"`},
		{in: "slice:build", err: `binding "slice:build": a slice's name ends with .slice: write "slice:build.slice"`},
		{in: "user:-1", err: `binding "user:-1": a user's number is from 0 to 4294967294`},
		{in: "user:+1", err: `binding "user:+1": a user's number is from 0 to 4294967294`},
		{in: "user:4294967295", err: `binding "user:4294967295": a user's number is from 0 to 4294967294`},
		{in: "user:4294967296", err: `binding "user:4294967296": a user's number is from 0 to 4294967294`},
		{in: "user:01", err: `binding "user:01" has a zero in front of the number: write "user:1"`},
		{in: "user:00", err: `binding "user:00" has a zero in front of the number: write "user:0"`},
		{in: "user:-a", err: `binding "user:-a": a user's name begins with no sign: write "user:NAME" or "user:NUMBER"`},
		{in: "cgroup:/a/**", err: `binding "cgroup:/a/**": ** is no pattern: write *, which stands for a part of one name; what lies below comes with it`},
		{in: "unit:a[!b].service", err: `binding "unit:a[!b].service": write [^ instead of [! for any other character`},
		{in: "unit:a[b.service", err: `binding "unit:a[b.service": a [ opens a list of characters as in [a-c], and must be closed; write [[] for the bracket itself`},
		{in: "cgroup:/a[b/c]", err: `binding "cgroup:/a[b/c]": a [ opens a list of characters as in [a-c], and must be closed; write [[] for the bracket itself`},
		{in: "unit:a*", err: `binding "unit:a*": a unit's name has an ending: write "unit:a*.service"`},
		{in: "slice:a*", err: `binding "slice:a*": a slice's name ends with .slice: write "slice:a*.slice"`},
		{in: "link:veth*", err: `binding "link:veth*": only cgroups, units and slices can be named by a pattern: write a binding for each link`},
		{in: "user:1?", err: `binding "user:1?": users cannot be named by a pattern: write a binding for each` + logins},
		{in: "user:1000-1999", err: `binding "user:1000-1999": a binding is to one user: write one for each, "user:1000" and so on` + logins},
		{in: "user:a-1", want: Binding{User, "a-1"}},
		{in: "group:staff", err: `binding "group:staff": groups cannot be bound: write a binding for each user, "user:NAME"`},
		{in: "uid:1000", err: `binding "uid:1000": a user is bound by name or number: write "user:1000"`},
		{in: "slice:-.slice", err: `binding "slice:-.slice" names the root slice, which the rest already stands for`},
	})
	if got := Kind(9).String(); got != "unknown" {
		t.Errorf("a kind that does not exist prints as %s", got)
	}
}

func TestPattern(t *testing.T) {
	for _, r := range []struct {
		pattern  Pattern
		exact    bool
		literals int
		yes, no  []string
	}{
		{"nginx.service", true, 13, []string{"nginx.service"}, []string{"nginx.servicex", ""}},
		{"worker@*.service", false, 15, []string{"worker@1.service", "worker@.service"}, []string{"worker.service", "worker@1.socket"}},
		{"a?c", false, 2, []string{"abc", "a*c"}, []string{"ac", "abbc"}},
		{"[a-c]*[^x]", false, 0, []string{"ab", "cxy"}, []string{"ax", "db", "a"}},
		{`dev-disk\x2d*`, false, 12, []string{`dev-disk\x2d1`}, []string{"dev-diskx2d1"}},
		{"a[[]b]c", false, 4, []string{"a[b]c"}, []string{"abc"}},
		{"[", false, 0, nil, []string{"[", ""}},
		{"*", false, 0, []string{"", "a", "_a.b"}, []string{"a/b"}},
	} {
		t.Run(string(r.pattern), func(t *testing.T) {
			if got := r.pattern.Exact(); got != r.exact {
				t.Errorf("exact %v", got)
			}
			if got := r.pattern.Literals(); got != r.literals {
				t.Errorf("%d bytes for themselves, want %d", got, r.literals)
			}
			for _, s := range r.yes {
				if !r.pattern.Match(s) {
					t.Errorf("%q is not matched", s)
				}
			}
			for _, s := range r.no {
				if r.pattern.Match(s) {
					t.Errorf("%q is matched", s)
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	fuzz(f, Parse, "cgroup:/a", "unit:a.service", "slice:a.slice", "user:1000", ":", "unit:", "cgroup:/a/../b", "cgroup:/[a-z]*", "unit:a@?[^b].service")
}

// fuzz holds a reader to: a value or an error, never both; and what it read is
// read back from what it prints.
func fuzz[T interface {
	comparable
	String() string
}](f *testing.F, parse func(string) (T, error), seeds ...string) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		v, err := parse(in)
		var zero T
		if err != nil {
			if v != zero {
				t.Errorf("%q gives %v and the error %v", in, v, err)
			}
			if m := err.Error(); strings.ContainsFunc(m, func(r rune) bool { return r < ' ' }) {
				t.Errorf("%q: the error has a control character: %q", in, m)
			}
			return
		}
		if back, err := parse(v.String()); err != nil || back != v {
			t.Errorf("%q is %v, which is read as %v, %v", in, v, back, err)
		}
	})
}
