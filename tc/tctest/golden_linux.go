package tctest

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/cpu"
)

// Golden compares a message to the kernel with its flags and its body, which is
// written as 32-bit words as they lie in memory, in hexadecimal digits.
func Golden(t *testing.T, m netlink.Message, flags netlink.HeaderFlags, want string) {
	t.Helper()
	Require(t, !cpu.IsBigEndian, "a little-endian machine, of which the messages to compare with are")
	if m.Header.Flags != flags|netlink.Request {
		t.Errorf("flags %v, want %v", m.Header.Flags, flags|netlink.Request)
	}
	if d := cmp.Diff(strings.Fields(want), strings.Fields(words(m.Data))); d != "" {
		t.Errorf("(-want +got)\n%s\ngot%s", d, words(m.Data))
	}
}

// words is a message body as 32-bit words, eight to a line.
func words(b []byte) string {
	var s strings.Builder
	for i := 0; i+4 <= len(b); i += 4 {
		if i%32 == 0 {
			s.WriteByte('\n')
		}
		fmt.Fprintf(&s, "%s ", hex.EncodeToString(b[i:i+4]))
	}
	return s.String()
}
