package observe

import (
	"testing"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

func TestRate(t *testing.T) {
	for _, tt := range []struct {
		was, is uint64
		took    time.Duration
		want    hierarchy.Bandwidth
	}{
		{1_000_000, 4_750_000, time.Second, 30 * hierarchy.Mbit},
		{0, 3_750_000, 3 * time.Second, 10 * hierarchy.Mbit},
		{7, 7, time.Second, 0},
		{1_000_000, 1_000, time.Second, 0}, // the class was made anew
	} {
		if got := rate(tt.was, tt.is, tt.took); got != tt.want {
			t.Errorf("from %d to %d bytes in %v: %v, want %v", tt.was, tt.is, tt.took, got, tt.want)
		}
	}
}

// TestFlowsUnknown: where there are matches, what is of no flow is not said to be in the rest.
func TestFlowsUnknown(t *testing.T) {
	for matched, want := range map[bool]string{
		false: "1 flow known, room for 8; 3 packets were of none, and went to the rest",
		true:  "1 flow known, room for 8; 3 packets were of none, and went where matches have them, else to the rest",
	} {
		if s := (&Flows{Known: 1, Room: 8, Unknown: 3, matched: matched}).String(); s != want {
			t.Errorf("%q, not %q", s, want)
		}
	}
}
