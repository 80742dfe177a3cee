package guest

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestProbe(t *testing.T) {
	db := readModules("a\t\t\nb\ta\tnet-pf-*\nc\tb ?broken built_in\tqdisc-x alias-one\nbroken\t\t\nd\tbroken\t\ne\t\tnet-pf-10\nodd line\n")
	for _, tt := range []struct {
		name string
		want []string
		fail bool
	}{
		{name: "a", want: []string{"a"}},
		{name: "b", want: []string{"a", "b"}},
		{name: "c", want: []string{"a", "b", "c"}},
		{name: "alias_one", want: []string{"a", "b", "c"}},
		{name: "net-pf-10", want: []string{"a", "b", "e"}},
		{name: "d", fail: true},
		{name: "nosuch", fail: true},
	} {
		var got []string
		err := db.probe(tt.name, func(name string) error {
			if name == "broken" {
				return errors.New("broken")
			}
			got = append(got, name)
			return nil
		})
		if d := cmp.Diff(tt.want, got); d != "" || (err != nil) != tt.fail {
			t.Errorf("%s: %v (-want +got)\n%s", tt.name, err, d)
		}
	}
}
