package policy

import (
	"os"
	"regexp"
	"testing"

	"github.com/vifshape/vifshape/hierarchy/match"
)

// TestKeysExplained holds that `vifshape help policy` explains each key, and `vifshape help
// match` each of a match.
func TestKeysExplained(t *testing.T) {
	for file, keys := range map[string][]string{
		"policy": known(levelFile | levelInterface | levelBranch),
		"match":  match.Keys(),
	} {
		text, err := os.ReadFile("../cmd/vifshape/topics/" + file + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if k != "interface" && !regexp.MustCompile(`(?m)^  (\w+, )*`+k+`(, \w+)*(  .*)?$`).Match(text) {
				t.Errorf("%s.txt does not explain %q", file, k)
			}
		}
	}
}
