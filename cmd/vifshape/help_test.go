package main

import (
	"strings"
	"testing"

	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// Every kind is explained, with each of its parameters and what it takes.
func TestHelpQdisc(t *testing.T) {
	for _, k := range qdisc.Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			text, err := aboutKind(k)
			if err != nil {
				t.Fatal(err)
			}
			if want := "  qdisc = { kind = \"" + k.Name + `", `; !strings.HasPrefix(text, want) {
				t.Errorf("no example: %s", text)
			}
			example, _, _ := strings.Cut(text, "\n")
			file := "version = 1\n[interface.eth0]\nrate = \"1gbit\"\n[interface.eth0.web]\n" + example
			if _, err := policy.Parse("policy.toml", strings.NewReader(file), qdisc.Kinds()); err != nil {
				t.Errorf("the example is no policy: %v", err)
			}
			for _, p := range k.Params {
				if want := "\n  " + p.Name + "\n      " + p.Help + "\n      " + takes(&p); !strings.Contains(text, want) {
					t.Errorf("no %q in %s", want, text)
				}
			}
		})
	}
}
