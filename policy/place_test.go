package policy_test

import (
	"strings"
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
)

func TestPlace(t *testing.T) {
	const text = `version = 1
binding = "bpf"
[interface.eth0]
rate = "10mbit"
[interface.eth0.web]
qdisc = { kind = "pfifo", limit = 7 }
bind = ["user:0"]
[interface."eth0.5"]
  rate = "1mbit"
  ingress = "2mbit"
[interface."eth0.5".web]
ingress = { rate = "1mbit" }
[interface.eth1]
rate = "1mbit"
web.rate = "10kbit"
`
	p, err := policy.Parse("policy.toml", strings.NewReader(text), leaves())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		path         hierarchy.Path
		key          string
		line, column int
	}{
		{"", "binding", 2, 11},
		{"", "none", 0, 0},
		{"eth0", "rate", 4, 8},
		{"eth0", "", 3, 12},
		{"eth0", "replace", 3, 12},
		{"eth0/web", "qdisc", 6, 9},
		{"eth0/web", "qdisc.limit", 6, 35},
		{"eth0/web", "bind", 7, 8},
		{"eth0/web/rest", "qdisc", 5, 17},
		{"eth0/rest", "", 3, 12},
		{"eth0.5", "rate", 9, 10},
		{"eth0.5", "ingress.rate", 10, 13},
		{"eth0.5", "ingress", 10, 13},
		{"eth0.5/web", "ingress.rate", 12, 20},
		{"eth0.5/web", "ingress.qdisc.limit", 12, 11},
		{"eth0.5/rest", "ingress.rate", 8, 12},
		{"eth1/web", "rate", 15, 12},
		{"eth7", "rate", 0, 0},
	} {
		if _, line, column := p.Place(x.path, x.key); line != x.line || column != x.column {
			t.Errorf("Place(%q, %q) = %d:%d, want %d:%d", x.path, x.key, line, column, x.line, x.column)
		}
	}
}
