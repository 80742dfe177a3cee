package policy

import (
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
)

// TestWords: no branch that the model accepts has the name of a key.
func TestWords(t *testing.T) {
	for _, name := range known(levelInterface | levelBranch) {
		if hierarchy.CheckName(name) == nil {
			t.Errorf("hierarchy accepts a branch called %q", name)
		}
	}
	for _, o := range others {
		if from, to := o.from, o.to; where(from) != 0 || where(to)&(levelInterface|levelBranch) == 0 {
			t.Errorf("%q is said to be called %q", from, to)
		}
	}
}
