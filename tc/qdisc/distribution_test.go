//go:build linux

package qdisc

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/tc/tctest"
)

// The tables are those that come with tc.
func TestDistributions(t *testing.T) {
	for kind, name := range distributionNames() {
		if kind == distUniform {
			continue
		}
		var want []int16
		for _, dir := range []string{"/usr/lib/x86_64-linux-gnu/tc", "/usr/lib/aarch64-linux-gnu/tc", "/usr/lib/tc", "/lib/tc"} {
			b, err := os.ReadFile(dir + "/" + name + ".dist")
			if err != nil {
				continue
			}
			_, numbers, _ := strings.Cut(string(b), "\n")
			for _, f := range strings.Fields(numbers) {
				n, err := strconv.ParseInt(f, 10, 16)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, int16(n))
			}
			break
		}
		tctest.Require(t, want != nil, "the tables of iproute2")
		if d := cmp.Diff(want, distTable(kind)); d != "" {
			t.Errorf("%s (-tc's +ours)\n%s", name, d)
		}
	}
}
