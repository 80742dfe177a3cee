package hierarchy_test

import (
	"slices"
	"strings"
	"testing"

	. "github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

func TestNearest(t *testing.T) {
	keys := []string{"rate", "ceil", "prio", "burst", "cburst", "quantum", "qdisc", "bind"}
	for in, want := range map[string]string{
		"rat": "rate", "Rate": "rate", "ciel": "ceil", "ceils": "ceil", "brust": "burst", "qdsic": "qdisc", "quantums": "quantum", "pria": "prio", "cat": "", "bid": "bind", "colour": "", "": "", "x": "",
	} {
		if got := Nearest(in, keys); got != want {
			t.Errorf("nearest to %q is %q, want %q", in, got, want)
		}
	}
	if got := Nearest(strings.Repeat("a", 100), []string{strings.Repeat("a", 100)}); got != "" && len(got) != 100 {
		t.Errorf("long names: %q", got)
	}
}

func TestNear(t *testing.T) {
	for _, tt := range []struct {
		name  string
		known []string
		want  []string
	}{
		{"wep", []string{"db", "web", "wap", "wet", "wed", "rest"}, []string{"web", "wap", "wet"}},
		{"eht0", []string{"eth1", "eth0"}, []string{"eth0"}},
		{"nginx-proxi", []string{"nginx", "ngin-proxi", "nginx-proxy", "nginx-proxies"}, []string{"ngin-proxi", "nginx-proxy", "nginx-proxies"}},
		{"web", []string{"web", "web"}, []string{"web"}},
		{"mail", []string{"web"}, nil},
	} {
		if got := Near(tt.name, tt.known); !slices.Equal(got, tt.want) {
			t.Errorf("near %s are %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestParseBinding(t *testing.T) {
	if b, err := ParseBinding("user:alice"); err != nil || b != (bind.Binding{Kind: bind.User, Name: "alice"}) {
		t.Errorf("%v, %v", b, err)
	}
	for in, want := range map[string]string{
		"usr:alice":         `binding "usr:alice" is of unknown kind "usr": did you mean "user:alice"?`,
		"unt:nginx.service": `binding "unt:nginx.service" is of unknown kind "unt": did you mean "unit:nginx.service"?`,
		"Cgroup:/a:b":       `binding "Cgroup:/a:b" is of unknown kind "Cgroup": did you mean "cgroup:/a:b"?`,
		"user:01":           `binding "user:01" has a zero in front of the number: write "user:1"`,
	} {
		if _, err := ParseBinding(in); err == nil || err.Error() != want {
			t.Errorf("%s: %v", in, err)
		}
	}
	if _, err := ParseBinding("vm:web"); err == nil || !strings.Contains(err.Error(), `"container:NAME"`) {
		t.Errorf("what is near nothing is told no kinds: %v", err)
	}
}

func TestNoBranch(t *testing.T) {
	tree := []Path{"eth0", "eth0/web", "eth0/web/api", "eth0/web/rest", "eth0/backup", "eth0/rest"}
	many := []Path{"eth0"}
	for _, n := range strings.Fields("a1 b2 c3 d4 e5 f6 g7 h8") {
		many = append(many, Path("eth0").Join(n))
	}
	for _, tt := range []struct {
		path  Path
		known []Path
		want  string
	}{
		{"eth0/wep", tree, "; did you mean eth0/web?"},
		{"eth0/web/app", tree, "; did you mean eth0/web/api?"},
		{"eth0/api", tree, "; did you mean eth0/web/api?"},
		{"eth0/web/web/api", tree, "; did you mean eth0/web/api?"},
		{"eth0/back/rest", tree, "; did you mean eth0/rest or eth0/web/rest?"},
		{"eth0/web/x", tree, "; there are eth0/backup, eth0/rest, eth0/web, eth0/web/api and eth0/web/rest"},
		{"eth0/x", many, "; there are eth0/a1, eth0/b2, eth0/c3, eth0/d4, eth0/e5, eth0/f6 and 2 more"},
		{"eth0/x", many[:8], "; there are eth0/a1, eth0/b2, eth0/c3, eth0/d4, eth0/e5, eth0/f6 and eth0/g7"},
		{"eth0/web", []Path{"eth0", "eth0/rest"}, "; the only one is eth0/rest"},
		{"eth0/web", nil, ""},
		{"eth0/z1", many, "; did you mean eth0/a1?"},
		{"eth0/xx1", []Path{"eth0/xx2", "eth0/xx3", "eth0/xx4", "eth0/xx5"}, "; did you mean eth0/xx2, eth0/xx3 or eth0/xx4?"},
	} {
		was := slices.Clone(tt.known)
		if got := NoBranch(tt.path, tt.known).Error(); got != "there is no branch "+string(tt.path)+tt.want {
			t.Errorf("%s", got)
		}
		if !slices.Equal(was, tt.known) {
			t.Errorf("the known ones became %v", tt.known)
		}
	}
}
