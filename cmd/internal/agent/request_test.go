package agent

import (
	"strings"
	"testing"

	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/hierarchy"
)

// FuzzRequest holds that what is made of a request is a branch's path, or an error.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{"version":1,"op":"enter","path":"eth0/a"}`,
		`{"version":1,"op":"add","path":"eth0/a/x","rate":"5mbit","ceil":"50%","prio":3,"qdisc":"sfq","ingress":"10mbit"}`,
		`{"version":1,"op":"remove","path":"eth0/../x"}`,
		`{"version":2}`, `{}`, `[`, ``, "\x00", `{"path":1}`, `{"version":1,"path":"a/b"}{}`,
	} {
		f.Add(s + "\n")
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := readRequest(strings.NewReader(s))
		if err != nil {
			return
		}
		names := strings.Split(string(q.Path), "/")
		if q.Version != client.Version || len(names) < 2 || names[0] == "" || names[0] == "." || names[0] == ".." {
			t.Fatalf("%q: %+v", s, q)
		}
		for _, n := range names[1:] {
			if err := hierarchy.CheckName(n); err != nil {
				t.Fatalf("%q: %v", s, err)
			}
		}
	})
}
