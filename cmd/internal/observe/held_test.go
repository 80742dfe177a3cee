package observe

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy/bind"
)

// TestHeldWords: what is said of a binding, and nothing of what is not known.
func TestHeldWords(t *testing.T) {
	n := func(i int) *int { return &i }
	sshd, rsync := process{812, "sshd"}, process{900, "rsync"}
	tests := []struct {
		name  string
		v     Bound
		want  string
		lines []string
	}{
		{"nobody", Bound{}, "no process", nil},
		{"not to be read", Bound{Processes: []process{sshd}}, "1 process", nil},
		{"nothing open", Bound{Processes: []process{sshd, rsync}, Held: Held{Sockets: n(0), Carried: n(0)}}, "2 processes, no open socket", nil},
		{"one", Bound{Processes: []process{sshd}, Held: Held{Sockets: n(1), Carried: n(1)}}, "1 process, 1 socket that carries it", nil},
		{"all", Bound{Processes: []process{sshd}, Held: Held{Sockets: n(2), Carried: n(2)}}, "1 process, 2 sockets that carry it", nil},
		{
			"some", Bound{Processes: []process{sshd, rsync}, Held: Held{Sockets: n(5), Carried: n(3), Elsewhere: []Stray{{"eth0/rest", 2, []process{sshd, rsync}}}}},
			"2 processes, 3 of 5 sockets carry it", []string{"2 sockets in eth0/rest: sshd[812], rsync[900]"},
		},
		{
			"one of many", Bound{Processes: []process{sshd}, Held: Held{Sockets: n(3), Carried: n(1), Untold: 2}},
			"1 process, 1 of 3 sockets carries it", []string{"2 sockets of which the kernel does not tell where they belong"},
		},
		{
			"none", Bound{Processes: []process{sshd}, Held: Held{Sockets: n(3), Carried: n(0), Elsewhere: []Stray{{"eth0/rest", 3, []process{sshd}}}}},
			"1 process, none of 3 sockets carries it", []string{"3 sockets in eth0/rest: sshd[812]"},
		},
		{
			"elsewhere", Bound{Processes: []process{sshd}, Held: Held{Sockets: n(0), Carried: n(0), Other: []process{sshd}}},
			"1 process", []string{"1 process in another network namespace, of which this binding holds nothing that is forwarded: sshd[812]"},
		},
		{
			"of others", Bound{Processes: []process{sshd}, Held: Held{Unread: []process{sshd}}},
			"1 process", []string{"the sockets of 1 process cannot be read: sshd[812]"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.v.Target = bind.ToCgroup("/x")
			if got := tt.v.Summary(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if diff := cmp.Diff(tt.lines, tt.v.Reasons()); diff != "" {
				t.Errorf("reasons (-want +got):\n%s", diff)
			}
		})
	}
	if got := (&Bound{Target: bind.ToLink("veth0")}).Summary(); got != "" {
		t.Errorf("of an interface: %q", got)
	}
}
