package policy_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/policy"
)

// formatted holds that what a policy says is the same after it was written as a policy.
func formatted(t *testing.T, p *policy.Policy) {
	t.Helper()
	text := policy.Format(p.Binding, p.Specs, nil)
	again, err := policy.Parse("formatted", strings.NewReader(text), exampleKinds())
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if p.Binding != again.Binding || !reflect.DeepEqual(p.Specs, again.Specs) || !reflect.DeepEqual(p.Trees, again.Trees) {
		t.Errorf("another policy (-want +got):\n%s\n%s", cmp.Diff(p.Specs, again.Specs, cmp.AllowUnexported(hierarchy.Amount{})), text)
	}
	if twice := policy.Format(again.Binding, again.Specs, nil); twice != text {
		t.Errorf("written twice it differs:\n%s", cmp.Diff(text, twice))
	}
}

func TestFormatExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/*.toml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d examples: %v", len(files), err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		p, err := policy.Parse(file, strings.NewReader(string(data)), exampleKinds())
		if err != nil {
			t.Fatal(err)
		}
		formatted(t, p)
	}
}

// Format writes as a person would, and loses no note.
func TestFormat(t *testing.T) {
	const text = `version = 1
[interface."eth0.100"]
rate = "100mbit"
replace = true
ingress = { rate = "250mbit", flows = 2000 }
[interface."eth0.100".web]
rate = "50%"
bind = ['unit:app-a\x2d1.scope', "user:www"]
match = [{ dport = [80, 443, "8000-8100"], proto = "tcp" }, { to = ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"], dscp = "EF", mark = "0x10/0xff" }]
[interface."eth0.100".web."a+b"]
qdisc = { kind = "pfifo", limit = 100 }
ingress = "10%"
`
	p, err := policy.Parse("", strings.NewReader(text), leaves())
	if err != nil {
		t.Fatal(err)
	}
	got := policy.Format("nft", p.Specs, []policy.Note{
		{Text: "From tc.\nTwo lines, one \x1b."},
		{Path: "eth0.100/web", Text: "class 1:10"},
		{Path: "eth0.100/web", Key: "rate", Text: "was 60mbit"},
		{Path: "eth0.100/web", Key: "match", Text: "above the list"},
		{Path: "eth0.100/web", Key: "prio", Text: "9 is none"},
		{Path: "eth0.100/web/a+b", Key: "qdisc", Text: "long " + strings.Repeat("and ", 30) + "longer"},
		{Path: "eth0.100/gone", Key: "rate", Text: "has no table"},
	})
	want := `# From tc.
# Two lines, one ` + "\ufffd" + `.
version = 1
binding = "nft"

[interface."eth0.100"]
rate = "100mbit"
replace = true
ingress = { rate = "250mbit", flows = 2000 }

# class 1:10
[interface."eth0.100".web]
rate = "50%"  # was 60mbit
bind = ['unit:app-a\x2d1.scope', "user:www"]
# above the list
match = [
  { proto = "tcp", dport = [80, 443, "8000-8100"] },
  { to = ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"], dscp = "EF", mark = "0x10/0xff" },
]
# prio: 9 is none

[interface."eth0.100".web."a+b"]
# long ` + strings.TrimSpace(strings.Repeat("and ", 26)) + `
#   and and and and longer
qdisc = { kind = "pfifo", limit = 100 }
ingress = "10%"

# eth0.100/gone: has no table
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	formatted(t, p)
}

// Lines that are not in force stand below the keys of their table, in the order in which they
// come, and are the only comments without a space: put in force, they are what they were
// made from.
func TestFormatOff(t *testing.T) {
	const text = `version = 1
[interface.eth0]
rate = "100mbit"
[interface.eth0.web]
rate = "50%"
`
	p, err := policy.Parse("", strings.NewReader(text), leaves())
	if err != nil {
		t.Fatal(err)
	}
	branch := func(name, binding string) *hierarchy.BranchSpec {
		b, err := bind.Parse(binding)
		if err != nil {
			t.Fatal(err)
		}
		ceil, err := hierarchy.ParseAmount("30%")
		if err != nil {
			t.Fatal(err)
		}
		return &hierarchy.BranchSpec{Name: name, Ceil: ceil, Bind: []bind.Binding{b}}
	}
	odd := branch("foo@bar", `unit:foo@bar\x2dbaz.service`)
	got := policy.Format("", p.Specs, []policy.Note{
		{Path: "eth0/web", Below: true, Text: "Found:\n#rate = 1"},
		{Path: "eth0", Key: "prio", Text: "none"},
		{Path: "eth0/web", Below: true, Off: policy.Inline(odd), Text: "short"},
		{Path: "eth0/web", Below: true, Off: policy.Inline(branch("x", "user:a.b"))},
		{Path: "eth0", Below: true, Off: `ingress = "90mbit"`, Text: "long " + strings.Repeat("and ", 30) + "\nlonger"},
	})
	want := `version = 1

[interface.eth0]
rate = "100mbit"
# prio: none
# long ` + strings.TrimSpace(strings.Repeat("and ", 26)) + `
#   and and and and
# longer
#ingress = "90mbit"

[interface.eth0.web]
rate = "50%"

# Found:
# #rate = 1
#"foo@bar" = { ceil = "30%", bind = ['unit:foo@bar\x2dbaz.service'] }  # short
#x = { ceil = "30%", bind = ["user:a.b"] }
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	again, err := policy.Parse("", strings.NewReader(regexp.MustCompile(`(?m)^#([^ ])`).ReplaceAllString(got, "$1")), leaves())
	if err != nil {
		t.Fatal(err)
	}
	if web := again.Specs[0].Children[0]; len(web.Children) != 2 || !reflect.DeepEqual(web.Children[0], odd) || again.Specs[0].Ingress == nil {
		t.Errorf("in force: %+v", web.Children)
	}
}
