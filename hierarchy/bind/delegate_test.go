package bind_test

import (
	"testing"

	. "github.com/vifshape/vifshape/hierarchy/bind"
)

func TestParseDelegate(t *testing.T) {
	check(t, ParseDelegate, []read[Delegate]{
		{in: "alice", want: "alice"},
		{in: "_svc-2.x", want: "_svc-2.x"},
		{in: "uid:1000", want: "uid:1000"},
		{in: "uid:4294967294", want: "uid:4294967294"},
		{in: "", err: `"" delegates to nobody: write a user's name, or "uid:1000"`},
		{in: "uid:", err: `"uid:" delegates to nobody: write a user's name, or "uid:1000"`},
		{in: "1000", err: `"1000" is a number: write "uid:1000"`},
		{in: "root", err: "root needs no delegation: root may do it anyway, and nobody else gets to be root by it"},
		{in: "uid:0", err: `"uid:0" is root, who needs no delegation`},
		{in: "uid:00", err: `"uid:00" is root, who needs no delegation`},
		{in: "uid:01", err: `"uid:01" has a zero in front of the number: write "uid:1"`},
		{in: "uid:-1", err: `"uid:-1": a user's number is from 1 to 4294967294`},
		{in: "uid:4294967295", err: `"uid:4294967295": a user's number is from 1 to 4294967294`},
		{in: "uid:4294967296", err: `"uid:4294967296": a user's number is from 1 to 4294967294`},
		{in: "uid:alice", err: `"uid:alice": a user's number is from 1 to 4294967294`},
		{in: "uid:65534", err: `"uid:65534" stands for every user that a user namespace does not know: give the program a user of its own`},
		{in: "user:alice", err: `"user:alice": a user is written as "alice" here`},
		{in: "group:users", err: `"group:users": a branch is delegated to users, not to groups: write their names`},
		{in: "@users", err: `"@users": a branch is delegated to users, not to groups: write their names`},
		{in: "-alice", err: `"-alice" is no user's name: write a name such as "alice", or "uid:1000"`},
		{in: "al ice", err: `"al ice" is no user's name: write a name such as "alice", or "uid:1000"`},
		{in: "al\x00ice", err: `"al\x00ice" is no user's name: write a name such as "alice", or "uid:1000"`},
		{in: "../alice", err: `"../alice" is no user's name: write a name such as "alice", or "uid:1000"`},
	})
}

func TestDelegateUID(t *testing.T) {
	for d, want := range map[Delegate]uint32{"uid:1000": 1000, "uid:4294967294": 4294967294, "alice": 0, "": 0} {
		if got, ok := d.UID(); got != want || ok != (want != 0) {
			t.Errorf("%q is user %d, %v; not %d", d, got, ok, want)
		}
	}
}
