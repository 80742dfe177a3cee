package words_test

import (
	"os/exec"
	"testing"

	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestQuoted: a shell takes what is printed for the name, whatever is in it.
func TestQuoted(t *testing.T) {
	bash := tctest.RequireProgram(t, "bash")
	for _, name := range []string{"eth0", "br-0.5@x", "a;$(id)", "it's", "a\x1b[31mb", "é", "", "/run/x:1", "a b", "two\nlines", `"$HOME"`, "`id`", "~", "*", "-", "\xff"} {
		q := words.Quoted(name)
		out, err := exec.CommandContext(t.Context(), bash, "-c", "printf %s "+q).CombinedOutput()
		if err != nil || string(out) != name || words.Printable(q) != q {
			t.Errorf("quoted(%q) = %s: the shell has %q (%v)", name, q, out, err)
		}
	}
}
